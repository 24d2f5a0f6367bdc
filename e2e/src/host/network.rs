//! Ways to a host beside its IPv4 address on the bridge.

use std::process::Command;

use super::{Host, ip};
use crate::process::{output, run};

impl Host {
    /// Gives it an IPv6 address that the controller's side reaches; the address.
    pub fn ipv6(&self) -> String {
        let [_, _, high, low] = self.octets();
        let address = format!("fd77::{high:x}:{low:x}");
        // Every test of the world adds it: only the first succeeds
        let _ = run(Command::new("ip").args(["addr", "add", "fd77::1/64", "dev", "br0", "nodad"]));
        ip(&["-n", &self.name(), "addr", "add", &format!("{address}/64"), "dev", "eth0", "nodad"]);
        address
    }

    /// Its link-local IPv6 address, with the zone that leads there from the controller's side.
    pub fn link_local(&self) -> String {
        let shown = output(Command::new("ip").args(["-n", &self.name(), "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"]));
        let address = shown.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap_or_else(|| panic!("no address in {shown}"));
        format!("{address}%br0")
    }

    /// Has a second sshd listen on `port`, until the next boot.
    pub fn listen_on(&self, port: u16) {
        self.output(&["systemd-run", "--quiet", "--service-type=exec", "/usr/sbin/sshd", "-D", "-p", &port.to_string()]);
    }

    /// Takes it off the bridge, and connects it with `other` by a cable that nobody else is on; its address there, to which nothing else has a route.
    pub fn only_behind(&self, other: &Self) -> String {
        let [_, _, high, low] = self.octets();
        let (near, far) = (format!("10.98.{high}.{low}"), format!("10.99.{high}.{low}"));
        let port = format!("to-{}", self.name());
        ip(&["-n", &other.name(), "link", "add", &port, "type", "veth", "peer", "name", "eth1", "netns", &self.name()]);
        for (host, device, ours, theirs) in [(other, port.as_str(), &near, &far), (self, "eth1", &far, &near)] {
            ip(&["-n", &host.name(), "addr", "add", ours, "peer", theirs, "dev", device]);
            ip(&["-n", &host.name(), "link", "set", device, "up"]);
        }
        self.cut_link();
        far
    }
}
