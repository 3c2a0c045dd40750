//! The devices and registers to which a boot's accesses go, from the counters of `vmm --stats`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// The registers of a 16550A by their offset: where two share an offset, as read and as written.
const UART: [&str; 8] = ["data", "IER", "IIR/FCR", "LCR", "MCR", "LSR", "MSR", "scratch"];
const COM1: u64 = 0x3f8;

/// The number of registers of a device that the table names.
const SHOWN: usize = 8;

/// The phases of `vmm`'s start, in order.
const PHASES: [&str; 6] = ["kvm", "vfio", "populate", "map", "load", "set_up"];

/// The accesses to one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The name of the device.
    pub device: String,
    /// The number of accesses.
    pub exits: u64,
    /// The number of accesses by register, the largest first.
    pub places: Vec<(String, u64)>,
}

/// The rows of the table, the largest first. `stats` are the VMM's counters.
pub fn rows(stats: &Value) -> Vec<Row> {
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut count = |device: String, place: String, exits: u64| {
        let sum = counts.entry((device, place)).or_default();
        *sum = sum.saturating_add(exits);
    };
    let devices = stats.pointer("/devices").and_then(Value::as_object);
    let devices = || devices.into_iter().flatten();
    let present: Vec<u64> = devices()
        .filter(|(name, _)| name.as_str() == "pci-ecam")
        .flat_map(|(_, device)| places(device.get("by_address")))
        .map(|(offset, _)| offset)
        .filter(|offset| offset & 0xfff != 0)
        .map(|offset| offset >> 12)
        .collect();
    for (name, device) in devices() {
        for (place, exits) in places(device.get("by_address")) {
            let (device, place) = match name.as_str() {
                "serial" => ("serial port".into(), uart(place)),
                "pci-ecam" => config(place, present.contains(&(place >> 12))),
                other => (other.to_owned(), format!("{place:#x}")),
            };
            count(device, place, exits);
        }
        let bars = device.get("bars").and_then(Value::as_array);
        for (index, bar) in bars.into_iter().flatten().enumerate() {
            for (page, exits) in places(Some(bar)) {
                count(format!("BARs of {name}"), format!("BAR{index}+{page:#x}"), exits);
            }
        }
    }
    grouped(counts)
}

fn places(by_address: Option<&Value>) -> impl Iterator<Item = (u64, u64)> {
    let entries = by_address.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(place, exits)| {
        let place = u64::from_str_radix(place.strip_prefix("0x")?, 16).ok()?;
        Some((place, exits.as_u64()?))
    })
}

fn uart(port: u64) -> String {
    let register = usize::try_from(port.wrapping_sub(COM1)).unwrap_or(usize::MAX);
    UART.get(register).map_or_else(|| format!("{port:#x}"), |name| (*name).to_owned())
}

/// Names the function and the register of an ECAM offset. A function is present if a register other
/// than its identity was accessed.
fn config(offset: u64, is_present: bool) -> (String, String) {
    let (slot, function) = (offset >> 15, offset >> 12 & 7);
    match is_present {
        true => {
            (format!("config space of 00:{slot:02x}.{function}"), format!("{:#x}", offset & 0xfff))
        }
        false => ("config space of absent functions".into(), format!("{:#x}", offset & 0xfff)),
    }
}

fn grouped(counts: BTreeMap<(String, String), u64>) -> Vec<Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for ((device, place), exits) in counts {
        let row =
            rows.entry(device.clone()).or_insert(Row { device, exits: 0, places: Vec::new() });
        row.exits = row.exits.saturating_add(exits);
        row.places.push((place, exits));
    }
    let mut rows: Vec<Row> = rows.into_values().collect();
    rows.iter_mut().for_each(|row| row.places.sort_by_key(|(_, exits)| std::cmp::Reverse(*exits)));
    rows.sort_by_key(|row| std::cmp::Reverse(row.exits));
    rows
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut text = "| device | accesses of a boot | of these |\n|---|---|---|\n".to_owned();
    for row in rows {
        let named = row.places.iter().take(SHOWN);
        let mut named: Vec<String> =
            named.map(|(place, exits)| format!("{place}: {exits}")).collect();
        if row.places.len() > SHOWN {
            named.push(format!("{} others", row.places.len().saturating_sub(SHOWN)));
        }
        text.push_str(&format!("| {} | {} | {} |\n", row.device, row.exits, named.join(", ")));
    }
    text
}

/// The number of exits, and of the coalesced writes.
pub fn exits(stats: &Value) -> String {
    let count = |name: &str| stats.pointer(&format!("/exits/{name}")).and_then(Value::as_u64);
    let [all, coalesced] = ["total", "coalesced"].map(|name| count(name).unwrap_or_default());
    format!(
        "Exits to userspace of the whole boot: {all}. KVM coalesced {coalesced} further \
         writes, which the VMM replayed at the next exit.\n"
    )
}

/// The times of the phases of the start and of the end, in order.
pub fn phases(stats: &Value) -> String {
    let phase = |name: &&str| {
        let nanoseconds = stats.pointer(&format!("/phases_ns/{name}"))?.as_u64()?;
        Some(format!("{name} {} us", nanoseconds / 1000))
    };
    let text = |names: &[&str]| names.iter().filter_map(phase).collect::<Vec<_>>().join(", ");
    format!(
        "Phases of the start, before the guest's first instruction: {}\n\
         Phases of the end, after the guest's power-off: {}\n",
        text(&PHASES),
        text(&["end", "close"])
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_accesses_by_device_and_register() {
        let stats = json!({"devices": {
            "serial": {"reads": 3, "by_address": {"0x3fd": 2, "0x3f8": 1}},
            "pci-ecam": {"by_address": {"0x8000": 1, "0x8034": 5, "0x10000": 1, "0x18000": 1}},
            "0000:00:02.0": {"bar_writes": 4, "bars": [{"0x2000": 4}, {}]},
            "unclaimed": {"by_address": {"0x61": 1}},
        }});
        let rows = rows(&stats);
        let found: Vec<_> = rows.iter().map(|row| (row.device.as_str(), row.exits)).collect();
        let expected = [
            ("config space of 00:01.0", 6),
            ("BARs of 0000:00:02.0", 4),
            ("serial port", 3),
            ("config space of absent functions", 2),
            ("unclaimed", 1),
        ];
        assert_eq!(found, expected);
        assert!(table(&rows).contains("| serial port | 3 | LSR: 2, data: 1 |"));
        assert!(table(&rows).contains("| BARs of 0000:00:02.0 | 4 | BAR0+0x2000: 4 |"));
    }
}
