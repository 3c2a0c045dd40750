//! Tests of routing on a real /dev/kvm. They do not run if there is none.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::counters::KvmCalls;
use crate::host::{MsiMessage, MsiRouter, MsiVectors};

mod deferred;
mod order;
mod own;

fn vm(test: &str) -> Option<VmFd> {
    let vm =
        Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|vm| vm.create_irq_chip().map(|()| vm));
    if vm.is_err() {
        eprintln!("{test} did not run: /dev/kvm does not open here");
    }
    vm.ok()
}

fn router(test: &str, gsis: Range<u32>) -> Option<(Arc<KvmCalls>, KvmRouter)> {
    let calls = Arc::new(KvmCalls::default());
    let vm = Arc::new(vm(test)?);
    Some((calls.clone(), KvmRouter::new(vm, gsis, calls)))
}

fn messages(vectors: Range<u16>) -> Vec<(u16, Option<MsiMessage>)> {
    vectors.map(|vector| (vector, message(u32::from(vector)))).collect()
}

fn message(data: u32) -> Option<MsiMessage> {
    Some(MsiMessage { address: 0xfee0_0000, data })
}

#[test]
fn a_batch_needs_one_commit_and_a_mask_cycle_needs_none() {
    let Some((calls, router)) =
        router("a_batch_needs_one_commit_and_a_mask_cycle_needs_none", 24..4096)
    else {
        return;
    };
    let mut vectors = router.allocate(64).unwrap();
    vectors.update(&messages(0..64)).unwrap();
    assert_eq!((calls.set_gsi_routing.value(), calls.irqfd.value()), (1, 64));
    vectors.update(&[(3, None)]).unwrap();
    vectors.update(&[(3, message(3))]).unwrap();
    assert_eq!((calls.set_gsi_routing.value(), calls.irqfd.value()), (1, 66));
    drop(vectors);
    assert_eq!((calls.set_gsi_routing.value(), calls.irqfd.value()), (2, 130));
}

/// The trigger of a vector that is not delivered has collected an interrupt. The call does not
/// consume it.
fn is_signalled(trigger: &EventFd) -> bool {
    trigger.read().is_ok_and(|count| trigger.write(count).is_ok())
}

#[test]
fn a_trigger_collects_interrupts_until_its_vector_is_delivered() {
    let name = "a_trigger_collects_interrupts_until_its_vector_is_delivered";
    let Some((_, router)) = router(name, 24..4096) else {
        return;
    };
    let mut vectors = router.allocate(1).unwrap();
    let trigger = vectors.trigger(0).unwrap();
    assert!(!is_signalled(&trigger));
    trigger.write(1).unwrap();
    assert!(is_signalled(&trigger));
    vectors.update(&[(0, message(1))]).unwrap();
    vectors.update(&[(0, None)]).unwrap();
    assert!(!is_signalled(&trigger), "it was delivered once");
}

#[test]
fn reports_how_many_gsis_are_free_and_allocates_none_for_a_refused_batch() {
    let name = "reports_how_many_gsis_are_free_and_allocates_none_for_a_refused_batch";
    let Some((calls, router)) = router(name, 24..28) else {
        return;
    };
    let mut other = router.allocate(1).unwrap();
    other.update(&[(0, message(0))]).unwrap();
    let mut vectors = router.allocate(4).unwrap();
    let before = (calls.set_gsi_routing.value(), calls.irqfd.value());
    let error = vectors.update(&messages(0..4)).unwrap_err().to_string();
    assert_eq!(error, "4 more GSIs are asked for: of the VM's 4, 1 are used and 3 are free");
    assert_eq!((calls.set_gsi_routing.value(), calls.irqfd.value()), before);
    vectors.update(&messages(0..3)).unwrap();
    drop(vectors);
    router.allocate(3).unwrap().update(&messages(0..3)).unwrap();
}

#[test]
fn allocates_as_many_gsis_as_kvm_accepts_routes() {
    let name = "allocates_as_many_gsis_as_kvm_accepts_routes";
    let Some((_, router)) = router(name, 24..4096) else {
        return;
    };
    let mut table = router.shared.lock();
    let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let mut take = |count: usize| table.take(&vec![eventfd.clone(); count]);
    assert!(take(4057).is_err());
    let gsis = take(4056).unwrap();
    let msi = |gsi| entries::Msi { message: message(gsi).unwrap(), device_id: None };
    let mut routes = entries::Routes::new(&(24..4096));
    routes.msis = gsis.iter().map(|gsi| (*gsi, msi(*gsi))).collect();
    table.set_routing(&routes).unwrap();
    routes.msis.insert(5000, msi(0));
    assert_eq!(table.set_routing(&routes).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn refuses_a_vector_that_does_not_exist() {
    let Some((_, router)) = router("refuses_a_vector_that_does_not_exist", 24..26) else {
        return;
    };
    let mut vectors = router.allocate(1).unwrap();
    assert_eq!(vectors.update(&[(1, message(1))]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert!(vectors.trigger(1).is_err());
}
