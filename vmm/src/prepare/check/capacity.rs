//! Limits that all devices share: slots of the guest's bus, and mappings of a container.

use super::super::inventory::Inventory;
use super::device::Function;
use super::line::Line;

/// Slots of the guest's bus without the host bridge's.
const FREE_SLOTS: usize = devices::SLOTS as usize - 1;

const ENTRIES: &str = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit";

/// An upper bound of the regions of RAM: below and above the 32-bit hole, each around a hole of the
/// IOMMU.
const RAM_REGIONS: usize = 8;
/// An upper bound of the areas of a BAR: around the table of MSI-X and its pending bits.
const AREAS: usize = 3;

/// The lines of these limits.
pub(super) fn lines(host: &Inventory, functions: &[Function]) -> [Line; 2] {
    [slots(functions.len()), mappings(host, functions)]
}

fn slots(devices: usize) -> Line {
    match devices <= FREE_SLOTS {
        true => Line::ok("slots", format!("{devices} of {FREE_SLOTS} slots are taken")),
        false => Line::fail(
            "slots",
            format!("{devices} devices do not fit in {FREE_SLOTS} slots of the guest's bus"),
            "assign fewer devices",
        ),
    }
}

/// The BARs of a guest with several devices are mapped for the DMA of the others.
fn mappings(host: &Inventory, functions: &[Function]) -> Line {
    let check = "dma-mappings";
    let bars = functions.iter().map(|function| function.bars.len());
    let areas = bars.fold(0, usize::saturating_add).saturating_mul(AREAS);
    let needed = RAM_REGIONS.saturating_add(if functions.len() > 1 { areas } else { 0 });
    let limit = host.tree.line(ENTRIES).and_then(|line| line.parse::<usize>().ok());
    match limit {
        Some(limit) if limit < needed => Line::warning(
            check,
            format!("a guest needs up to {needed} mappings for DMA, and a container takes {limit}"),
            format!("echo {needed} > /{ENTRIES}"),
        ),
        _ => Line::ok(check, format!("up to {needed} mappings for DMA, within the limit")),
    }
}
