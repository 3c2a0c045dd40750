//! Models that are neither disks, networks, serial lines, sound nor displays.

use std::fs;

use guest::Report;
use lab::{L1, Model, OTHERS, sha256};
use serde_json::{Value, json};

use super::case::{Case, result};

/// The cipher text of NIST SP 800-38A, F.2.1.
const CIPHER_TEXT: &str = "7649abac8119b246cee98e9b12e9197d";
const FRAME: &str = "230100000800000001020305080d1522";
/// The version of IPMI and the manufacturer that the controller has.
const CONTROLLER: &str = "2.0 0x123456";
const KIB: usize = 1024;
const HASHED: usize = 1 << 20;

/// What is done with one of [`OTHERS`].
pub fn case(model: &Model) -> Case {
    match model.name {
        "virtio-rng-pci" => rng(),
        "virtio-serial-pci" => port(),
        "virtio-9p-pci" => share(),
        "virtio-keyboard-pci" => {
            pressed("key", json!({"key": {"type": "qcode", "data": "power"}, "down": true}))
        }
        "virtio-mouse-pci" | "virtio-tablet-pci" => {
            pressed("btn", json!({"button": "left", "down": true}))
        }
        "virtio-crypto-pci" => tried("crypto", "a block encrypted", CIPHER_TEXT),
        "kvaser_pci" => tried("can", "a frame sent", FRAME),
        "i6300esb" => watchdog(),
        "pvpanic-pci" => panic(),
        "edu" => edu(),
        "ivshmem-plain" => memory(),
        "pci-testdev" => ports(),
        _ => tried("ipmi", "Get Device ID answered", CONTROLLER),
    }
}

/// A trial whose result is known.
fn tried(name: &'static str, data: &'static str, expected: &'static str) -> Case {
    Case::new(&format!("try:{name},interrupts"), data, move |_, _, reports| {
        Ok(result(reports, name).is_some_and(|found| found == expected))
    })
}

fn rng() -> Case {
    Case::new("try:rng,interrupts", "16 bytes of the host's file", |l1, index, reports| {
        let image: String =
            l1.image(index)?[..HASHED].iter().map(|it| format!("{it:02x}")).collect();
        let bytes = result(reports, "rng").and_then(|text| text.strip_prefix("virtio_rng.0 "));
        Ok(bytes.is_some_and(|bytes| image.contains(bytes)))
    })
}

fn port() -> Case {
    Case::new("try:port,interrupts", "1 KiB read and written back", |l1, index, reports| {
        let sent = l1.image(index)?[..KIB].to_vec();
        let returned = fs::read(l1.output(index)).unwrap_or_default();
        Ok(result(reports, "port") == Some(sha256(&sent).as_str()) && returned == sent)
    })
}

fn share() -> Case {
    Case::new("try:share,interrupts", "1 MiB of a file of the host read", |l1, _, reports| {
        let first = OTHERS.iter().position(Model::is_disk).unwrap_or_default();
        let expected = sha256(&l1.image(first)?[..HASHED]);
        Ok(result(reports, "share").is_some_and(|hashes| hashes.contains(&expected)))
    })
}

/// A button that the host presses.
fn pressed(kind: &'static str, data: Value) -> Case {
    let case = Case::new("button:10000,interrupts", "a button pressed", |_, _, reports| {
        Ok(reports.contains(&Report::Button { pressed: true }))
    });
    case.act(move |monitor, _, report| match report {
        Report::Button { pressed: false } => {
            let events = json!({"events": [{"type": kind, "data": data}]});
            monitor.execute("input-send-event", &events).map(drop)
        }
        _ => Ok(()),
    })
}

fn watchdog() -> Case {
    Case::new("try:watchdog,interrupts", "it expired after 2 s", |l1, _, reports| {
        Ok(result(reports, "watchdog").is_some() && l1.monitor().has_seen("WATCHDOG")?)
    })
}

fn panic() -> Case {
    let steps = "interrupts,end:panic";
    let case = Case::new(steps, "a panic reported to the host", |l1: &mut L1, _, _| {
        l1.monitor().has_seen("GUEST_PANICKED")
    });
    Case { panics: true, ..case }
}

fn edu() -> Case {
    let case = Case::new("edu", "6 pages copied, 7 interrupts", |_, _, reports| {
        let copied = |it: &Report| {
            matches!(
                it,
                Report::Edu { copied: true, copied_after_straying: true, interrupts: 7, .. }
            )
        };
        Ok(reports.iter().any(copied))
    });
    Case { small: true, ..case }
}

fn memory() -> Case {
    Case::new("memory,interrupts", "64 MiB written and read", |_, _, reports| {
        Ok(reports.iter().any(|it| matches!(it, Report::Memory { same: true, .. })))
    })
}

fn ports() -> Case {
    Case::new("ports:100,interrupts", "100 writes counted", |_, _, reports| {
        Ok(reports.iter().any(|it| matches!(it, Report::Ports { count: 100, .. })))
    })
}
