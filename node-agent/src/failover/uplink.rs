//! What this node's cables are like.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;

use spillway_core::health::{Moment, Uplink};

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    frames: Option<u64>,
    received: Option<Moment>,
}

impl Uplinks {
    /// Looks at the devices' carriers, and at whether the underlay's device has received anything since the last look.
    pub(super) fn look(&mut self, now: Moment, underlay: Option<&str>, uplinks: &BTreeSet<String>) -> Uplink {
        let frames = underlay.and_then(|device| {
            let table = fs::read_to_string("/proc/self/net/dev").ok()?;
            frames(&table, device)
        });
        // The first look only tells where the counter stands.
        if self.frames.is_some() && frames.is_some() && frames != self.frames {
            self.received = Some(now);
        }
        self.frames = frames;
        let devices = uplinks.iter().map(String::as_str).chain(underlay);
        Uplink {
            carrier: devices.into_iter().all(carrier),
            received: self.received,
        }
    }
}

/// Whether the device has a carrier. A device of which nothing can be read counts as having one.
fn carrier(device: &str) -> bool {
    match fs::read_to_string(format!("/sys/class/net/{device}/carrier")) {
        Ok(text) => text.trim() != "0",
        // That is what the kernel says of a device that is switched off.
        Err(error) => error.kind() != ErrorKind::InvalidInput,
    }
}

/// Frames that `device` has received, out of `/proc/net/dev`.
fn frames(table: &str, device: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == device).then_some(numbers)
    })?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_counts_frames() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
            lo: 1024      12    0    0    0     0          0         0     1024      12    0\n  \
            eth0:98765432  4711    0    0    0     0          0         0  1234 5 0\n";
        assert_eq!(frames(table, "eth0"), Some(4711));
        assert_eq!(frames(table, "lo"), Some(12));
        assert_eq!(frames(table, "eth1"), None);
    }

    #[test]
    fn a_device_that_nobody_knows_is_no_cut_cable() {
        assert!(carrier("there-is-no-such"));
        let look = Uplinks::default().look(Moment::ZERO, Some("there-is-no-such"), &BTreeSet::new());
        assert_eq!(look, Uplink::default());
    }
}
