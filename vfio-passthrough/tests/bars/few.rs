//! Tests of a hypervisor that has fewer memory slots than the BARs need.

use super::*;

#[test]
fn a_bar_without_a_memory_slot_is_trapped_and_logged_once() {
    let setup = Setup::new(config_of([0, 0, 0, 0, 0, 0], &[]), &[0x2000, 0x2000, 0x2000]);
    for (index, address) in [(0, 0xe000_0000), (1, 0xe001_0000), (2, 0xe002_0000)] {
        setup.write32(0x10 + index * 4, address);
    }
    // The hypervisor has one slot.
    (1..6).for_each(|nth| setup.faults.fail(Call::PlaceSlot, nth, libc::ENOSPC));
    let ((), lines) = logged(|| {
        setup.write16(COMMAND, 2);
        setup.write16(COMMAND, 2);
    });
    assert_eq!((setup.guest.slots(), lines), (vec![range(0xe000_0000, 0x2000)], 1));
    // The trapped BARs work as the direct one does.
    for bar in 0..3 {
        setup.function.bar_write(BarIndex::new(bar).unwrap(), 0x10, &7_u32.to_le_bytes());
        assert_eq!(setup.bar_read32(bar, 0x10), 7);
    }
    setup.faults.clear();
    let ((), lines) = logged(|| setup.write16(COMMAND, 2));
    assert_eq!((setup.guest.slots().len(), lines), (3, 0), "slots are free again");
}
