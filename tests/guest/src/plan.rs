//! The plan on the kernel command line, such as
//! `guest.do=look,hash:4M,write:1M@8M,read:10000x32,pause:200,end:off`.

use std::str::FromStr;

use guest::Ending;

use crate::system::Error;
use crate::trials;

/// The steps of the guest, and how it ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// How the guest ends; the default is power-off.
    pub ending: Ending,
    /// The number of reboots before the end. The first disk holds how many were done.
    pub reboots: u8,
}

/// One step. A step on a disk is done on every disk.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// List the PCI functions.
    Look,
    /// Hash the first `bytes`.
    Hash { bytes: u64 },
    /// Write the pattern and read it back.
    Write { bytes: u64, offset: u64 },
    /// `count` reads of 4 KiB, `depth` at a time.
    Read { count: u64, depth: u64 },
    /// Send `count` ARP requests to the router on every network.
    Net { count: u64 },
    /// Send `bytes` on every serial line of a PCI device, which loops them back.
    Serial { bytes: u64 },
    /// Wait for `count` USB devices, then list all.
    Usb { count: usize },
    /// Wait until there are `count` disks.
    Disks { count: usize },
    /// Wait until there are `count` networks.
    Networks { count: usize },
    /// Wait until there are exactly `count` PCI functions, the host bridge included.
    Functions { count: usize },
    /// Report this point.
    Mark { number: u64 },
    /// A disk comes and leaves, `times` times.
    Visits { times: u64 },
    /// Read from `disks` disks at the same time, until `lost` of them have failed.
    Lose { lost: usize, disks: usize },
    /// List the interrupts of functions.
    Interrupts,
    /// Use the edu device.
    Edu,
    /// Let the edu device copy without a pause for this time.
    Copy { milliseconds: u64 },
    /// Move the edu device's BAR.
    Wander,
    /// Let the edu device access the BAR of an ivshmem.
    P2p,
    /// Let the edu device read a register of an NVMe whose power state changes, and that is reset.
    P2pPower,
    /// Toggle an NVMe's decoding `times` times, and its power state and resets less often.
    Toggle { times: u64 },
    /// Write and read a large BAR.
    Memory,
    /// Write `times` times to a test device's ports.
    Ports { times: u64 },
    /// Read the expansion ROMs.
    Rom,
    /// Unbind and bind the driver of each NVMe, `times` times.
    Rebind { times: u64 },
    /// Move data through a device of this kind.
    Try { name: &'static str },
    /// Wait for the power button for at most this time.
    Button { milliseconds: u64 },
    /// Do nothing for this time, so that the lab can observe the guest.
    Pause { milliseconds: u64 },
}

impl FromStr for Plan {
    type Err = Error;

    fn from_str(command_line: &str) -> Result<Self, Error> {
        let asked = command_line.split_whitespace().find_map(|word| word.strip_prefix("guest.do="));
        let mut plan = Self { steps: Vec::new(), ending: Ending::Off, reboots: 0 };
        for word in asked.unwrap_or("look").split(',') {
            let (name, value) = word.split_once(':').unwrap_or((word, ""));
            match name {
                "reboots" => plan.reboots = value.parse().map_err(|_| Error::Plan(word.into()))?,
                "end" => plan.ending = ending(value).ok_or_else(|| Error::Plan(word.into()))?,
                _ => plan.steps.push(step(name, value).ok_or_else(|| Error::Plan(word.into()))?),
            }
        }
        Ok(plan)
    }
}

fn step(name: &str, value: &str) -> Option<Step> {
    Some(match name {
        "look" => Step::Look,
        "hash" => Step::Hash { bytes: size(value)? },
        "write" => {
            let (bytes, offset) = value.split_once('@').unwrap_or((value, "0"));
            Step::Write { bytes: size(bytes)?, offset: size(offset)? }
        }
        "read" => {
            let (count, depth) = value.split_once('x').unwrap_or((value, "1"));
            Step::Read { count: count.parse().ok()?, depth: depth.parse().ok()? }
        }
        "net" => Step::Net { count: value.parse().ok()? },
        "serial" => Step::Serial { bytes: size(value)? },
        "usb" if value.is_empty() => Step::Usb { count: 1 },
        "usb" => Step::Usb { count: value.parse().ok()? },
        "disks" => Step::Disks { count: value.parse().ok()? },
        "networks" => Step::Networks { count: value.parse().ok()? },
        "functions" => Step::Functions { count: value.parse().ok()? },
        "mark" => Step::Mark { number: value.parse().ok()? },
        "visits" => Step::Visits { times: value.parse().ok()? },
        "lose" => {
            let (lost, disks) = value.split_once('@')?;
            Step::Lose { lost: lost.parse().ok()?, disks: disks.parse().ok()? }
        }
        "interrupts" => Step::Interrupts,
        "edu" => Step::Edu,
        "copy" => Step::Copy { milliseconds: value.parse().ok()? },
        "wander" => Step::Wander,
        "p2p" => Step::P2p,
        "p2p-power" => Step::P2pPower,
        "toggle" => Step::Toggle { times: value.parse().ok()? },
        "memory" => Step::Memory,
        "ports" => Step::Ports { times: value.parse().ok()? },
        "rom" => Step::Rom,
        "rebind" => Step::Rebind { times: value.parse().ok()? },
        "try" => Step::Try { name: trials::named(value)? },
        "button" => Step::Button { milliseconds: value.parse().ok()? },
        "pause" => Step::Pause { milliseconds: value.parse().ok()? },
        _ => return None,
    })
}

fn ending(value: &str) -> Option<Ending> {
    match value {
        "off" => Some(Ending::Off),
        "reboot" => Some(Ending::Reboot),
        "panic" => Some(Ending::Panic),
        _ => None,
    }
}

/// Parses a number of bytes, with K or M as the unit if it has one.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('M') {
        Some(digits) => (digits, 1 << 20),
        None => text.strip_suffix('K').map_or((text, 1), |digits| (digits, 1 << 10)),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_a_full_line() {
        let plan: Plan =
            "console=ttyS0 guest.do=look,hash:4M,write:1M@8M,read:10x4,pause:5,reboots:2,end:reboot quiet"
                .parse()
                .unwrap();
        let steps = vec![
            Step::Look,
            Step::Hash { bytes: 4 << 20 },
            Step::Write { bytes: 1 << 20, offset: 8 << 20 },
            Step::Read { count: 10, depth: 4 },
            Step::Pause { milliseconds: 5 },
        ];
        assert_eq!(plan, Plan { steps, ending: Ending::Reboot, reboots: 2 });
    }

    #[test]
    fn defaults_to_a_look_and_power_off() {
        let plan: Plan = "console=ttyS0\n".parse().unwrap();
        assert_eq!(plan, Plan { steps: vec![Step::Look], ending: Ending::Off, reboots: 0 });
    }

    #[test]
    fn error_names_an_unknown_word() {
        for word in [
            "hash:4X",
            "hash:",
            "dance",
            "end:never",
            "write:1M@",
            "lose:1",
            "hash:99999999999999999M",
            "read:10x",
        ] {
            let error = format!("guest.do={word}").parse::<Plan>().unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
