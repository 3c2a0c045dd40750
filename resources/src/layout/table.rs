//! The plan as a table, for errors and logs.

use std::fmt;

use super::Layout;
use crate::AddressRange;

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ram.iter().try_for_each(|range| row(f, "RAM", range))?;
        row(f, "32-bit window", &self.mmio32)?;
        row(f, "ECAM", &self.ecam)?;
        row(f, "64-bit window", &self.mmio64)?;
        row(f, "port window", &self.io)?;
        self.bars.iter().try_for_each(|bar| {
            row(
                f,
                &bar.request.to_string(),
                &AddressRange::new(bar.address, bar.request.size),
            )
        })
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, range: &AddressRange) -> fmt::Result {
    if range.is_empty() {
        return writeln!(f, "  {name:<14} none");
    }
    writeln!(
        f,
        "  {name:<14} {:#014x}-{:#014x} ({})",
        range.start,
        range.end().saturating_sub(1),
        size(range.size)
    )
}

/// A size in the largest unit that it is a multiple of.
fn size(bytes: u64) -> String {
    let units = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    let whole = units.iter().find(|(unit, _)| bytes.is_multiple_of(*unit));
    match whole {
        Some((unit, name)) => format!("{} {name}", bytes.checked_div(*unit).unwrap_or(bytes)),
        None => format!("{bytes} B"),
    }
}
