//! A layout request and a plan as tables, for errors and logs.

use std::fmt;

use super::planned::Layout;
use super::request::{IoReach, LayoutRequest};
use super::units::size;
use crate::AddressRange;

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ram.iter().try_for_each(|range| row(f, "RAM", range, ""))?;
        row(f, "32-bit window", &self.mmio32, "")?;
        row(f, "ECAM", &self.ecam, "")?;
        row(f, "64-bit window", &self.mmio64, "")?;
        row(f, "port window", &self.io, "")?;
        self.bars.iter().try_for_each(|bar| {
            let (request, range) = (&bar.request, bar.range());
            let name = format!("BAR {}", request.index);
            let whose = format!("{}, {}", request.function, request.space);
            row(f, &name, &range, &whose)
        })
    }
}

impl fmt::Display for LayoutRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "requested:")?;
        writeln!(f, "  {} of RAM in pages of {}", size(self.ram), size(self.ram_page))?;
        self.bars.iter().try_for_each(|bar| writeln!(f, "  {bar}"))?;
        self.spare.iter().try_for_each(|spare| writeln!(f, "  {spare}"))?;
        writeln!(f, "available:")?;
        row(f, "CPUs reach", &self.cpu.reach(), "")?;
        match self.reach {
            IoReach::Unrestricted => {}
            IoReach::Apertures([]) => row(f, "IOMMU reaches", &AddressRange::default(), "")?,
            IoReach::Apertures(apertures) => {
                apertures.iter().try_for_each(|range| row(f, "IOMMU reaches", range, ""))?
            }
        }
        self.all_reserved().try_for_each(|(range, what)| row(f, "reserved", &range, what))
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, range: &AddressRange, what: &str) -> fmt::Result {
    if range.is_empty() {
        return writeln!(f, "  {name:<14} none");
    }
    let what = match what {
        "" => String::new(),
        what => format!(": {what}"),
    };
    writeln!(
        f,
        "  {name:<14} {:#014x}-{:#014x} ({}){what}",
        range.start,
        range.end().saturating_sub(1),
        size(range.size)
    )
}
