//! What the controller itself uses, and what room it has: for metrics.

use std::io;
use std::path::Path;

/// Free bytes and size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that this user may still write.
    pub free: u64,
    /// Its size.
    pub size: u64,
}

/// The room where `path` is.
pub fn room(path: &Path) -> io::Result<Room> {
    let found = rustix::fs::statvfs(path)?;
    Ok(Room { free: found.f_bavail.saturating_mul(found.f_frsize), size: found.f_blocks.saturating_mul(found.f_frsize) })
}

/// What this process uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Processor time, in seconds.
    pub cpu: f64,
    /// Resident bytes.
    pub memory: u64,
    /// Open file descriptors.
    pub files: u64,
    /// When it started, in seconds since 1970.
    pub started: f64,
}

/// Asks the kernel.
pub fn usage() -> io::Result<Usage> {
    let (stat, system) = (std::fs::read_to_string("/proc/self/stat")?, std::fs::read_to_string("/proc/stat")?);
    let files = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    read(&stat, &system, files).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat or /proc/stat"))
}

/// PURE. The fields after the name of the program, which may contain anything: proc_pid_stat(5) counts them from 3.
#[expect(clippy::cast_precision_loss, reason = "ticks fit")]
fn read(stat: &str, system: &str, files: u64) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let boot: f64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let seconds = |ticks: u64| ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Some(Usage {
        cpu: seconds(field(14)? + field(15)?),
        memory: field(24)?.saturating_mul(rustix::param::page_size() as u64),
        files,
        started: boot + seconds(field(22)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "ticks fit")]
    fn the_fields_are_counted_after_the_name_whatever_it_is() {
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 1000 99 512 18446744073709551615 1";
        let usage = read(stat, "cpu 1\nbtime 1700000000\n", 12).unwrap();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!((usage.cpu, usage.started), (200.0 / ticks, 1_700_000_000.0 + 1000.0 / ticks));
        assert_eq!((usage.memory, usage.files), (512 * rustix::param::page_size() as u64, 12));
        assert_eq!(read("77 (a) S 1", "btime 1", 0), None);
    }

    #[test]
    fn this_process_uses_something_and_the_root_has_a_size() {
        let usage = usage().unwrap();
        assert!(usage.memory > 0 && usage.files > 0 && usage.started > 0.0, "{usage:?}");
        let room = room(Path::new("/")).unwrap();
        assert!(room.size >= room.free && room.size > 0, "{room:?}");
    }
}
