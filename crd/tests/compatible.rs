//! What an earlier CRD took the present one takes too, and nothing that is stored is lost: docs/upgrading.md promises it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{fs, path::Path};

use serde_json::{Value, json};

/// What of the earlier schema the present one refuses or drops, each with its path.
fn narrower(path: &str, earlier: &Value, present: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut complain = |what: &str| found.push(format!("{path}: {what}"));
    if earlier["type"] != present["type"] {
        complain(&format!("was a {}, is a {}", earlier["type"], present["type"]));
    }
    let strings = |schema: &Value, key: &str| -> Vec<String> {
        schema[key].as_array().into_iter().flatten().map(|value| value.as_str().unwrap_or_default().to_owned()).collect()
    };
    for name in strings(present, "required").iter().filter(|name| !strings(earlier, "required").contains(name)) {
        complain(&format!("{name} is required now"));
    }
    if let Some(values) = present["enum"].as_array() {
        let all = earlier["enum"].as_array().is_some_and(|earlier| earlier.iter().all(|value| values.contains(value)));
        if !all {
            complain("takes fewer values");
        }
    }
    for (key, lower) in [
        ("maxLength", true),
        ("maxItems", true),
        ("maximum", true),
        ("maxProperties", true),
        ("minLength", false),
        ("minItems", false),
        ("minimum", false),
    ] {
        let (before, now) = (earlier[key].as_f64(), present[key].as_f64());
        let tighter = now.is_some_and(|now| before.is_none_or(|before| if lower { now < before } else { now > before }));
        if tighter {
            complain(&format!("{key} was {}, is {}", earlier[key], present[key]));
        }
    }
    if !present["pattern"].is_null() && present["pattern"] != earlier["pattern"] {
        complain("has another pattern");
    }
    let rules = |schema: &Value| -> Vec<Value> {
        schema["x-kubernetes-validations"].as_array().into_iter().flatten().map(|rule| rule["rule"].clone()).collect()
    };
    for rule in rules(present).iter().filter(|rule| !rules(earlier).contains(rule)) {
        complain(&format!("has the new rule {rule}"));
    }
    for (name, before) in earlier["properties"].as_object().into_iter().flatten() {
        match present["properties"].get(name) {
            Some(now) => found.extend(narrower(&format!("{path}.{name}"), before, now)),
            None => found.push(format!("{path}.{name}: is gone")),
        }
    }
    if earlier["items"].is_object() {
        found.extend(narrower(&format!("{path}[]"), &earlier["items"], &present["items"]));
    }
    found
}

fn schema(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// New rules that refuse nothing of what an earlier CRD took: they speak of fields that it did not have.
fn is_of_new_fields(complaint: &str, earlier: &Value) -> bool {
    let Some((path, rule)) = complaint.split_once(": has the new rule ") else { return false };
    let mut here = earlier;
    for name in path.split('.').skip(1) {
        here = &here["properties"][name];
    }
    let fields = rule.split("has(self.").skip(1).filter_map(|rest| rest.split([')', '.']).next());
    fields.into_iter().any(|field| here["properties"].get(field).is_none())
}

#[test]
fn what_an_earlier_crd_took_is_taken() {
    let present = nixos_host_api::custom_resource_definition().unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("earlier");
    let mut compared = 0;
    for file in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        let earlier: Value = serde_saphyr::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        for key in ["group", "names", "scope"] {
            let (before, now) = (&earlier["spec"][key], &present["spec"][key]);
            assert_eq!(before, now, "{}: {key}", file.display());
        }
        let mut complaints = narrower("", schema(&earlier), schema(&present));
        complaints.retain(|complaint| !is_of_new_fields(complaint, schema(&earlier)));
        assert!(complaints.is_empty(), "{}:\n{}", file.display(), complaints.join("\n"));
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn what_is_narrower_is_found() {
    let earlier = json!({"type": "object", "required": ["a"], "properties": {
        "a": {"type": "string", "maxLength": 9}, "b": {"type": "string", "enum": ["x", "y"]}, "c": {"type": "array", "items": {"type": "string"}}}});
    let changed = |pointer: &str, value: Value| {
        let mut present = earlier.clone();
        *present.pointer_mut(pointer).unwrap() = value;
        narrower("", &earlier, &present)
    };
    assert_eq!(narrower("", &earlier, &earlier), Vec::<String>::new());
    assert_eq!(changed("/properties/a/maxLength", json!(10)), Vec::<String>::new());
    assert_eq!(changed("/properties/a/maxLength", json!(8)), [".a: maxLength was 9, is 8"]);
    assert_eq!(changed("/properties/a/type", json!("integer")), [".a: was a \"string\", is a \"integer\""]);
    assert_eq!(changed("/required", json!(["a", "b"])), [": b is required now"]);
    assert_eq!(changed("/properties/b/enum", json!(["x"])), [".b: takes fewer values"]);
    assert_eq!(changed("/properties/b/enum", json!(["x", "y", "z"])), Vec::<String>::new());
    assert_eq!(changed("/properties/c/items", json!({"type": "string", "pattern": "x"})), [".c[]: has another pattern"]);
    assert_eq!(changed("/properties", json!({"a": {"type": "string", "maxLength": 9}})), [".b: is gone", ".c: is gone"]);
    let ruled = json!({"type": "object", "properties": {}, "x-kubernetes-validations": [{"rule": "has(self.a)"}]});
    assert_eq!(narrower("", &json!({"type": "object", "properties": {}}), &ruled), [": has the new rule \"has(self.a)\""]);
}
