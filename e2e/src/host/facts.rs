//! What is true on a host, read without the controller and without SSH.

use std::process::Command;

use super::Host;
use crate::process::run;

/// What sshd has seen since a [`Cursor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Connections that authenticated.
    pub logins: usize,
    /// Commands, shells and subsystems started on them.
    pub execs: usize,
}

/// A place in a host's journal.
#[derive(Clone, Debug)]
pub struct Cursor(String);

impl Host {
    fn link(&self, path: &str) -> String {
        self.output(&["readlink", "-f", path])
    }

    /// What `/run/current-system` is.
    pub fn current_system(&self) -> String {
        self.link("/run/current-system")
    }

    /// What `/run/booted-system` is.
    pub fn booted_system(&self) -> String {
        self.link("/run/booted-system")
    }

    /// The system that the system profile points to.
    pub fn profile(&self) -> String {
        self.link("/nix/var/nix/profiles/system")
    }

    /// The system whose init the boot menu's default entry names.
    pub fn boot_default(&self) -> String {
        let entry =
            self.exec(&["sh", "-c", r#"cat "/boot/loader/entries/$(awk '$1 == "default" { print $2 }' /boot/loader/loader.conf)""#]);
        // GRUB's default is its first entry
        let entry = if entry.status.success() { entry } else { self.exec(&["cat", "/boot/grub/grub.cfg"]) };
        if entry.status.success() {
            let options = entry.stdout.split_whitespace().find_map(|word| word.strip_prefix("init=")?.strip_suffix("/init"));
            return options.unwrap_or_else(|| panic!("{} boots no system:\n{}", self.name(), entry.stdout)).to_owned();
        }
        let menu = self.output(&["cat", "/boot/extlinux/extlinux.conf"]);
        default_entry(&menu).unwrap_or_else(|| panic!("the boot menu of {} has no default entry:\n{menu}", self.name()))
    }

    /// The generations of the system profile, oldest first: number and system.
    pub fn generations(&self) -> Vec<(u32, String)> {
        let list = self.shell("cd /nix/var/nix/profiles; for link in system-*-link; do echo \"$link $(readlink $link)\"; done");
        let mut generations: Vec<_> = list
            .lines()
            .filter_map(|line| {
                let (link, system) = line.split_once(' ')?;
                Some((link.strip_prefix("system-")?.strip_suffix("-link")?.parse().ok()?, system.to_owned()))
            })
            .collect();
        generations.sort_unstable();
        generations
    }

    /// Every valid path of its store.
    pub fn store_paths(&self) -> Vec<String> {
        let mut paths: Vec<_> = self.output(&["nix", "path-info", "--all"]).lines().map(str::to_owned).collect();
        paths.sort_unstable();
        paths
    }

    /// Its failed units.
    pub fn failed_units(&self) -> Vec<String> {
        let list = self.output(&["systemctl", "list-units", "--state=failed", "--no-legend", "--plain"]);
        list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// `systemctl is-active` of a unit: `active`, `inactive`, `failed`, `activating` …
    pub fn unit_state(&self, unit: &str) -> String {
        self.exec(&["systemctl", "is-active", unit]).stdout.trim().to_owned()
    }

    /// The id of the boot that it is in.
    pub fn boot_id(&self) -> String {
        self.output(&["cat", "/proc/sys/kernel/random/boot_id"])
    }

    /// Its journal's last lines, also when it is off.
    pub fn journal(&self, lines: usize) -> String {
        let lines = lines.to_string();
        if self.init().is_some() || self.emulator.get().is_some() {
            return self.exec(&["journalctl", "--no-pager", "--lines", &lines]).stdout;
        }
        let script =
            r#"mount --bind "$1" "$2/var/log/journal"; exec chroot "$2" journalctl --no-pager --directory /var/log/journal --lines "$3""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", script, "journal"]);
        command.arg(self.directory().join("disk/var/log/journal")).arg(crate::world::cache().join("root")).arg(lines);
        run(&mut command).stdout
    }

    /// What its consoles said: which init it booted, each time.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.directory().join("console.log")).unwrap_or_default()).into_owned()
    }

    /// The end of its journal, to count from.
    pub fn cursor(&self) -> Cursor {
        let shown = self.output(&["journalctl", "--no-pager", "--lines=0", "--show-cursor"]);
        let cursor = shown.lines().find_map(|line| line.strip_prefix("-- cursor: ")).unwrap_or_else(|| panic!("no cursor in {shown:?}"));
        Cursor(cursor.to_owned())
    }

    /// The messages of one program since a cursor.
    pub fn messages_since(&self, cursor: &Cursor, identifier: &str) -> Vec<String> {
        let shown = self.output(&["journalctl", "--no-pager", "--output=cat", "--identifier", identifier, "--after-cursor", &cursor.0]);
        shown.lines().map(str::to_owned).collect()
    }

    /// The logins, and the commands run on them, that sshd has seen since a cursor; those of [`Host::ssh`] count too.
    pub fn sessions_since(&self, cursor: &Cursor) -> Sessions {
        let messages = self.messages_since(cursor, "sshd");
        let count = |start: &str| messages.iter().filter(|message| message.starts_with(start)).count();
        Sessions { logins: count("Accepted publickey for "), execs: count("Starting session: ") }
    }
}

/// The system whose init the menu's default entry names.
fn default_entry(menu: &str) -> Option<String> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let default = menu.lines().map(words).find(|words| words.first().is_some_and(|word| word == "DEFAULT"))?.get(1)?.clone();
    let mut lines = menu.lines().map(words).skip_while(|words| *words != ["LABEL", &default]);
    let append = lines.find(|words| words.first().is_some_and(|word| word == "APPEND"))?;
    append.iter().find_map(|word| word.strip_prefix("init=")?.strip_suffix("/init").map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::default_entry;

    #[test]
    fn the_default_entry_is_the_one_that_default_names() {
        let menu = "DEFAULT nixos-2-default\n\nLABEL nixos-default\n  APPEND init=/nix/store/a/init quiet\n\n\
                    LABEL nixos-2-default\n  MENU LABEL two\n  APPEND loglevel=4 init=/nix/store/b/init\n";
        assert_eq!(default_entry(menu).as_deref(), Some("/nix/store/b"));
        assert_eq!(default_entry("DEFAULT nothing\n"), None);
    }
}
