//! Processes that the harness starts: commands that end, and daemons that must not outlive this process.

use std::{
    fs::File,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, mpsc},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

impl Output {
    /// The exit code; 128 + N after signal N.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    }
}

/// Runs a command to its end, whatever that is.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a command that has to succeed; its standard output without the last newline.
pub fn output(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?} ended with {}:\n{}{}", output.status, output.stdout, output.stderr);
    output.stdout.trim_end_matches('\n').to_owned()
}

/// A command whose process is killed when the thread that starts it ends: [`Daemon::start`] starts it on a thread that waits for it.
pub fn mortal(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

#[derive(Default)]
struct End {
    status: Mutex<Option<ExitStatus>>,
    happened: Condvar,
}

/// A long-running child process. It is killed when this is dropped, and when the test process dies in whatever way.
pub struct Daemon {
    name: String,
    pid: Pid,
    end: Arc<End>,
}

impl Daemon {
    /// Starts `command`, made by [`mortal`], with its output appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let file =
            File::options().create(true).append(true).open(log).unwrap_or_else(|error| panic!("cannot open {}: {error}", log.display()));
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file can be cloned")).stderr(file);
        let end = Arc::new(End::default());
        let (started, pid) = mpsc::channel();
        let at_end = Arc::clone(&end);
        std::thread::Builder::new()
            .name(format!("wait for {name}"))
            .spawn(move || {
                let mut child = match command.spawn() {
                    Ok(child) => child,
                    Err(error) => panic!("cannot start {command:?}: {error}"),
                };
                let _ = started.send(child.id());
                let status = child.wait().expect("a child can be waited for");
                *at_end.status.lock().expect("nothing panics with the lock held") = Some(status);
                at_end.happened.notify_all();
            })
            .expect("cannot start a thread");
        let pid = pid.recv().unwrap_or_else(|_| panic!("{name} did not start"));
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id fits an i32");
        Self { name: name.to_owned(), pid, end }
    }

    /// Its process id; `setpriv` has become the program itself.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.end.status.lock().expect("nothing panics with the lock held")
    }

    /// Waits until it ends; `None` when it did not in time.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let end = self.end.status.lock().expect("nothing panics with the lock held");
        let (status, _) =
            self.end.happened.wait_timeout_while(end, limit, |status| status.is_none()).expect("nothing panics with the lock held");
        *status
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// SIGTERM, and the time it took to end; panics when that was longer than `limit`.
    pub fn terminate(&self, limit: Duration) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.signal(Signal::TERM);
        match self.wait(limit) {
            Some(status) => (status, began.elapsed()),
            None => panic!("{} did not end within {limit:?} of SIGTERM", self.name),
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        assert!(self.wait(Duration::from_secs(20)).is_some(), "{} is still there 20 s after SIGKILL", self.name);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.wait(Duration::from_secs(20));
    }
}

/// The command line of a process, with blanks between its words; empty if there is no such process.
pub fn command_line(pid: i32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}
