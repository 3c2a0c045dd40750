//! Where RAM goes: from the lowest address up, around the 32-bit hole and all that is not reachable.

use super::table::size;
use super::{FOUR_GIB, Layout, LayoutRequest, MIB, Shortage};
use crate::AddressRange;
use crate::range::subtract;

/// Kernel and boot data are loaded here: RAM must begin with at least this much.
const LOW_RAM: u64 = 64 * MIB;
/// Each is a line of the firmware's memory map, of which Linux's zero page holds 128, a memory slot, and a
/// mapping for DMA.
const MOST_REGIONS: usize = 64;

/// Adds RAM to `plan`; what there was room for, if that is not all.
pub(super) fn place(
    request: &LayoutRequest<'_>,
    reachable: &[AddressRange],
    hole_start: u64,
    plan: &mut Layout,
) -> Result<(), Shortage> {
    let shortage = |why: String| Shortage { what: format!("{} of RAM", size(request.ram)), why };
    let page = request.ram_page;
    if !page.is_power_of_two() || request.ram.checked_rem(page) != Some(0) {
        return Err(shortage(format!("it is to be of pages of {}", size(page))));
    }
    let hole = AddressRange::between(hole_start, FOUR_GIB);
    let mut left = request.ram;
    let mut take = |free: AddressRange| {
        let whole_pages = free.size & !page.wrapping_sub(1);
        let taken = left.min(whole_pages);
        left = left.saturating_sub(taken);
        AddressRange::new(free.start, taken)
    };
    let free = subtract(reachable.to_vec(), &[hole]).into_iter().map(|range| range.aligned(page));
    let ram = free.map(&mut take).filter(|range| !range.is_empty());
    plan.ram = ram.take(MOST_REGIONS).collect();
    let low = AddressRange::new(0, request.ram.min(LOW_RAM));
    match plan.ram.first() {
        _ if left > 0 => Err(shortage(format!(
            "{} are left over when all that CPUs and IOMMU reach in {MOST_REGIONS} regions is used",
            size(left)
        ))),
        Some(first) if first.contains(&low) => Ok(()),
        _ => Err(shortage(format!(
            "it must begin with {low}, which is reserved or out of the IOMMU's reach"
        ))),
    }
}
