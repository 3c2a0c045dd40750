//! Placement of RAM: in ascending order, around the 32-bit hole and unreachable addresses.

use super::hole::Hole;
use super::planned::{Layout, Shortage};
use super::request::LayoutRequest;
use super::units::{MIB, size};
use crate::AddressRange;
use crate::range::subtract;

/// RAM must have this many bytes from its first address on: the VMM loads kernel and boot data there.
const LOW_RAM: u64 = 64 * MIB;
/// The limit of RAM regions. Each takes a memory slot, a DMA mapping and an entry of the guest's
/// memory map, which has 128 entries in the zero page of Linux on x86.
const MOST_REGIONS: usize = 64;

/// Adds RAM to `plan`: as much as fits, even if that is an error.
pub(super) fn place(
    request: &LayoutRequest<'_>,
    reachable: &[AddressRange],
    hole: &Hole,
    plan: &mut Layout,
) -> Result<(), Shortage> {
    let shortage = |why: String| Shortage { what: format!("{} of RAM", size(request.ram)), why };
    let page = request.ram_page;
    if !page.is_power_of_two() || request.ram.checked_rem(page) != Some(0) {
        return Err(shortage(format!("the size is not a multiple of a page of {}", size(page))));
    }
    let mut left = request.ram;
    let mut take = |free: AddressRange| {
        let whole_pages = free.size & !page.wrapping_sub(1);
        let taken = left.min(whole_pages);
        left = left.saturating_sub(taken);
        AddressRange::new(free.start, taken)
    };
    let free = subtract(reachable.to_vec(), &[hole.addresses])
        .into_iter()
        .map(|range| range.aligned(page));
    let ram = free.map(&mut take).filter(|range| !range.is_empty());
    plan.ram = ram.take(MOST_REGIONS).collect();
    let low = AddressRange::new(hole.ram_start, request.ram.min(LOW_RAM));
    match plan.ram.first() {
        _ if left > 0 => Err(shortage(format!(
            "{} do not fit into the addresses that CPUs and IOMMU reach, in at most {MOST_REGIONS} \
             regions",
            size(left)
        ))),
        Some(first) if first.contains(&low) => Ok(()),
        _ => {
            Err(shortage(format!("RAM needs {low}, which is reserved or out of the IOMMU's reach")))
        }
    }
}
