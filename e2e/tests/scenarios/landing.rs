//! Landing: the main job.

use nixos_host_e2e::Scenario;
use serde_json::json;

use crate::SOON;

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_land_and_are_read_back() {
    let scenario = Scenario::builder().hosts(3).start().await;
    let rev = scenario.repository.head();
    for index in 0..3 {
        scenario.apply(index, &json!({}));
    }
    scenario.kubectl.run(&["wait", "--for=condition=Ready", "nixoshosts", "--all", "--timeout=120s"]);
    for index in 0..3 {
        let toplevel = scenario.landed(index, &rev, SOON).await;
        let status = &scenario.get(index)["status"];
        assert_eq!(status["system"]["current"], toplevel);
        assert_eq!(status["system"]["bootDefault"], toplevel);
        assert_eq!(status["system"]["generation"], 2);
        assert_eq!(status["facts"]["bootId"], scenario.hosts[index].boot_id());
        assert_eq!(status["history"][0]["outcome"], "Succeeded");
        assert_eq!(status["history"].as_array().unwrap().len(), 1);
        assert_eq!(status["revision"], format!("main@{}", &rev[..7]));
    }
    scenario.finish().await;
}
