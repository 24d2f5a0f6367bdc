//! What a person sees: numbered steps, the commands with what they print, and a sign of life while something takes its time.

use std::{
    io::{BufRead, BufReader, IsTerminal, Write, stdout},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

const INDENT: &str = "   ";
const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";
const FRAMES: [char; 8] = ['⣾', '⣽', '⣻', '⢿', '⡿', '⣟', '⣯', '⣷'];

/// Standard output, in which the commands of one directory are shown and run.
#[derive(Clone)]
pub(crate) struct Terminal {
    directory: PathBuf,
    /// The line of [`Busy`] that is on the screen now.
    busy: Arc<Mutex<bool>>,
    colours: bool,
    steps: Arc<Mutex<u32>>,
}

impl Terminal {
    /// Commands run in `directory`.
    pub(crate) fn new(directory: PathBuf) -> Self {
        let colours = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { directory, busy: Arc::default(), colours, steps: Arc::default() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Prints a line as it is; a busy line makes way.
    fn print(&self, line: &str) {
        let mut busy = locked(&self.busy);
        let clear = if std::mem::take(&mut *busy) { "\r\x1b[K" } else { "" };
        // Nobody reads any longer: nothing to be done about it
        let _ = writeln!(stdout(), "{clear}{line}");
    }

    /// The first line.
    pub(crate) fn title(&self, text: &str) {
        self.print(&self.paint(BOLD, text));
    }

    /// What is done next, in one line.
    pub(crate) fn step(&self, text: &str) {
        let mut steps = locked(&self.steps);
        *steps += 1;
        self.print(&format!("\n{}", self.paint(BOLD, &format!("{steps}  {text}"))));
    }

    /// Something else to know.
    pub(crate) fn note(&self, text: &str) {
        self.print(&format!("{INDENT}{}", self.paint(DIM, text)));
    }

    /// What a command printed.
    pub(crate) fn output(&self, line: &str) {
        self.print(&format!("{INDENT}{line}"));
    }

    /// What was checked, and is so.
    pub(crate) fn checked(&self, text: &str) {
        self.print(&format!("{INDENT}{} {text}", self.paint(GREEN, "✓")));
    }

    /// The end, good or bad.
    pub(crate) fn end(&self, good: bool, text: &str) {
        let (code, sign) = if good { (GREEN, "✓") } else { (RED, "✗") };
        self.print(&format!("\n{}", self.paint(&format!("{BOLD};{code}"), &format!("{sign}  {text}"))));
    }

    /// Shows a command.
    pub(crate) fn show(&self, command: &str) {
        self.output(&self.paint(CYAN, &format!("$ {command}")));
    }

    /// Shows a command, runs it, and shows what it prints; the same.
    pub(crate) fn run(&self, command: &str) -> String {
        self.show(command);
        let output = self.shell(command).output().unwrap_or_else(|error| panic!("cannot run `{command}`: {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines().chain(String::from_utf8_lossy(&output.stderr).lines()) {
            self.output(line);
        }
        assert!(output.status.success(), "`{command}` ended with {}", output.status);
        text
    }

    /// Shows a command that runs until [`Running::end`], with each of its lines that `select` gives something for.
    pub(crate) fn start(&self, command: &str, mut select: impl FnMut(&str) -> Option<String> + Send + 'static) -> Running {
        self.show(command);
        let mut shell = self.shell(&format!("exec {command}"));
        let mut child =
            shell.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap_or_else(|error| panic!("cannot run `{command}`: {error}"));
        let lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        let terminal = self.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(line) = select(&line) {
                    terminal.output(&line);
                }
            }
        });
        Running { child, reader: Some(reader) }
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-euc", command]).current_dir(&self.directory).stdin(Stdio::null());
        shell
    }

    /// On a terminal, says what is being waited for, with the seconds, until dropped.
    pub(crate) fn busy(&self, text: impl Into<String>) -> Busy {
        let (stop, stopped) = mpsc::channel::<()>();
        if !stdout().is_terminal() {
            return Busy { stop: Some(stop), thread: None, terminal: self.clone() };
        }
        let (terminal, text, began) = (self.clone(), text.into(), Instant::now());
        let thread = std::thread::spawn(move || {
            for frame in FRAMES.iter().cycle() {
                let line = terminal.paint(DIM, &format!("{frame} {text} {} s", began.elapsed().as_secs()));
                let mut busy = locked(&terminal.busy);
                *busy = true;
                let _ = write!(stdout(), "\r\x1b[K{INDENT}{line}").and_then(|()| stdout().flush());
                drop(busy);
                if stopped.recv_timeout(Duration::from_millis(120)) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Busy { stop: Some(stop), thread: Some(thread), terminal: self.clone() }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A sign of life.
pub(crate) struct Busy {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    terminal: Terminal,
}

impl Drop for Busy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if std::mem::take(&mut *locked(&self.terminal.busy)) {
            let _ = write!(stdout(), "\r\x1b[K").and_then(|()| stdout().flush());
        }
    }
}

/// A command that shows what it prints while it runs.
pub(crate) struct Running {
    child: std::process::Child,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
