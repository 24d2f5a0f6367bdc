use super::*;

fn shell(script: &str) -> Command {
    Command { env: vec![("PATH".into(), "/usr/bin:/bin".into())], ..Command::new("/bin/sh", ["-c", script]) }
}

async fn run(command: Command) -> Finished {
    Processes::new().run(command, |_| (), &CancellationToken::new()).await.unwrap()
}

fn text(finished: &Finished) -> &str {
    std::str::from_utf8(&finished.stdout).unwrap().trim()
}

/// Whether a process still runs whose command line holds `mark`.
fn runs(mark: &str) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok_and(|pid| pid != std::process::id())));
    lines.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok()).any(|line| line.contains(mark))
}

async fn until_gone(mark: &str) {
    let gone = async {
        while runs(mark) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(GRACE * 2, gone).await.unwrap_or_else(|_| panic!("{mark} still runs"));
}

#[tokio::test]
async fn the_result_says_how_it_ended() {
    assert_eq!(run(shell("exit 7")).await.ending, Ending::Exited(7));
    assert_eq!(run(shell("kill -TERM $$")).await.ending, Ending::Killed(15));
    assert_eq!((Ending::Exited(7).to_string(), Ending::Killed(15).to_string()), ("exited with 7".into(), "was killed by signal 15".into()));
    assert_eq!(run(shell("kill -KILL $$")).await.ending, Ending::OutOfMemory);
    let slow = Command { time: Duration::from_millis(50), ..shell("sleep 60") };
    assert_eq!(run(slow).await.ending, Ending::TimedOut);
}

#[tokio::test]
async fn nothing_is_inherited_that_was_not_given() {
    let finished = run(Command { env: vec![("ONLY".into(), "this".into())], ..Command::new("/usr/bin/env", [""; 0]) }).await;
    assert_eq!(text(&finished), "ONLY=this");
    assert_eq!(text(&run(shell("readlink /proc/self/fd/0; pwd")).await), "/dev/null\n/");
}

#[tokio::test]
async fn input_output_and_inherited_files_arrive() {
    let finished = run(Command { stdin: b"hello".to_vec(), ..shell("cat; echo; echo one >&2; printf 'two\\rthree' >&2") }).await;
    assert_eq!(text(&finished), "hello");
    assert_eq!(finished.stderr, ["one", "two", "three"]);
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"kept").unwrap();
    let finished = run(Command { files: vec![(Arc::new(file.into()), 9)], ..shell("cat /proc/self/fd/9") }).await;
    assert_eq!(text(&finished), "kept");
}

#[tokio::test]
async fn output_beyond_the_limit_is_dropped_and_said_to_be() {
    let finished = run(Command { stdout_limit: 10, ..shell("head -c 1000000 /dev/zero") }).await;
    assert_eq!((finished.stdout.len(), finished.truncated, finished.success()), (10, true, false));
}

#[tokio::test]
async fn a_child_in_its_own_session_that_ignores_sigterm_is_ended_too() {
    let mark = "31557601.25";
    let script = format!("trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep {mark}' & echo up >&2; wait; sleep {mark}");
    let cancel = CancellationToken::new();
    let (token, begun) = (cancel.clone(), std::sync::atomic::AtomicBool::new(false));
    let on_line = |_: &str| {
        begun.store(true, Ordering::SeqCst);
        token.cancel();
    };
    let finished = Processes::new().run(shell(&script), on_line, &cancel).await.unwrap();
    assert_eq!(finished.ending, Ending::Cancelled);
    until_gone(mark).await;
}

#[tokio::test]
async fn dropping_the_future_ends_the_process() {
    let mark = "31557602.25";
    let processes = Processes::new();
    let (up, is_up) = tokio::sync::oneshot::channel();
    let mut up = Some(up);
    let cancel = CancellationToken::new();
    let future = processes.run(
        shell(&format!("echo up >&2; sleep {mark}")),
        |_| {
            if let Some(up) = up.take() {
                up.send(()).unwrap();
            }
        },
        &cancel,
    );
    tokio::select! { _ = future => panic!("it ended"), _ = is_up => () }
    until_gone(mark).await;
    assert_eq!(processes.counts(), [Count { program: "sh".into(), started: 1, running: 0 }]);
}

#[tokio::test]
async fn a_child_that_keeps_the_pipes_open_is_not_waited_for() {
    let mark = "31557603.25";
    let finished = tokio::time::timeout(GRACE * 2, run(shell(&format!("sleep {mark} & echo done")))).await.unwrap();
    assert_eq!((finished.ending, text(&finished)), (Ending::Exited(0), "done"));
    until_gone(mark).await;
}

#[tokio::test]
async fn a_confined_process_and_its_children_see_only_their_part() {
    let processes = Processes::new();
    assert!(processes.landlock(), "this test needs Landlock");
    let inside = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let confinement = Confinement {
        read: ["/usr", "/bin", "/lib", "/lib64", "/etc"].map(PathBuf::from).to_vec(),
        write: vec![inside.path().into(), "/dev/null".into()],
    };
    let script = format!(
        "cd {0}; echo x > y && cat y; cat {1}; sh -c 'cat {1}'; cat /proc/{2}/environ; kill -0 {2}; true",
        inside.path().display(),
        outside.path().display(),
        std::process::id()
    );
    let finished = run(Command { confinement: Some(Arc::new(confinement)), ..shell(&script) }).await;
    assert_eq!(text(&finished), "x");
    assert_eq!(finished.stderr.iter().filter(|line| line.contains("Permission denied")).count(), 3, "{:?}", finished.stderr);
    // The controller's own thread is as free as before.
    assert!(std::fs::read(outside.path()).is_ok());
}

#[tokio::test]
async fn address_space_is_limited() {
    let script = "sleep 0.2; dd if=/dev/zero of=/dev/null bs=512M count=1";
    let limited = run(Command { address_space: Some(256 << 20), ..shell(script) }).await;
    assert_ne!(limited.ending, Ending::Exited(0));
    assert_eq!(run(shell(script)).await.ending, Ending::Exited(0));
}

#[tokio::test]
async fn what_cannot_start_says_so() {
    let error = Processes::new().run(Command::new("/does/not/exist", [""; 0]), |_| (), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot start /does/not/exist");
}
