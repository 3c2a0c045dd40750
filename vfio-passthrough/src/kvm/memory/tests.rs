//! Memory slots of a real /dev/kvm, where there is one.

use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::*;

fn memory_of(test: &str, numbers: Range<u32>) -> Option<KvmMemory> {
    let Ok(vm) = Kvm::new().and_then(|kvm| kvm.create_vm()) else {
        eprintln!("{test} did not run: /dev/kvm does not open here");
        return None;
    };
    Some(KvmMemory::new(Arc::new(vm), numbers, Arc::default()))
}

fn page() -> Arc<GuestRegionMmap<()>> {
    Arc::new(GuestRegionMmap::from_range(GuestAddress(0), 4096, None).unwrap())
}

#[test]
fn a_slot_holds_its_memory_and_gives_its_number_back() {
    let Some(memory) = memory_of("a_slot_holds_its_memory_and_gives_its_number_back", 0..1) else {
        return;
    };
    let page = page();
    for _ in 0..3 {
        let mut slot = memory.place(0x1000, page.clone()).unwrap();
        assert_eq!(Arc::strong_count(&page), 2);
        assert_eq!(
            memory.place(0x2000, page.clone()).err().unwrap().raw_os_error(),
            Some(libc::ENOSPC)
        );
        slot.remove().unwrap();
        assert_eq!(Arc::strong_count(&page), 1);
        slot.remove().unwrap();
    }
}

#[test]
fn a_place_that_kvm_refuses_costs_no_number() {
    let Some(memory) = memory_of("a_place_that_kvm_refuses_costs_no_number", 0..2) else {
        return;
    };
    let _first = memory.place(0x1000, page()).unwrap();
    for _ in 0..3 {
        assert_eq!(
            memory.place(0x1000, page()).err().unwrap().raw_os_error(),
            Some(libc::EEXIST)
        );
    }
    let _second = memory.place(0x2000, page()).unwrap();
}
