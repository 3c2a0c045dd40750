//! Routing on a real /dev/kvm, where there is one.

use super::*;
use kvm_ioctls::Kvm;

fn router(test: &str, gsis: Range<u32>) -> Option<(Arc<KvmCalls>, KvmRouter)> {
    let vm = Kvm::new()
        .and_then(|kvm| kvm.create_vm())
        .and_then(|vm| vm.create_irq_chip().map(|()| vm));
    let Ok(vm) = vm else {
        eprintln!("{test} did not run: /dev/kvm does not open here");
        return None;
    };
    let calls = Arc::new(KvmCalls::default());
    Some((calls.clone(), KvmRouter::new(Arc::new(vm), gsis, calls)))
}

fn message(data: u32) -> Option<MsiMessage> {
    Some(MsiMessage {
        address: 0xfee0_0000,
        data,
    })
}

#[test]
fn a_batch_costs_one_commit_and_a_mask_cycle_none() {
    let Some((calls, router)) = router("a_batch_costs_one_commit_and_a_mask_cycle_none", 24..4096) else {
        return;
    };
    let mut vectors = router.allocate(64).unwrap();
    let all: Vec<_> = (0..64)
        .map(|vector| (vector, message(u32::from(vector))))
        .collect();
    vectors.update(&all).unwrap();
    assert_eq!((calls.set_gsi_routing.value(), calls.irqfd.value()), (1, 64));
    vectors.update(&[(3, None)]).unwrap();
    vectors.update(&[(3, message(3))]).unwrap();
    assert_eq!((calls.set_gsi_routing.value(), calls.irqfd.value()), (1, 66));
    drop(vectors);
    assert_eq!((calls.set_gsi_routing.value(), calls.irqfd.value()), (2, 130));
}

#[test]
fn what_fires_while_a_vector_is_not_delivered_is_pending_until_it_is() {
    let name = "what_fires_while_a_vector_is_not_delivered_is_pending_until_it_is";
    let Some((_, router)) = router(name, 24..4096) else {
        return;
    };
    let mut vectors = router.allocate(1).unwrap();
    let trigger = vectors.trigger(0).unwrap();
    assert!(!vectors.is_pending(0));
    trigger.write(1).unwrap();
    assert!(
        vectors.is_pending(0) && vectors.is_pending(0),
        "looking does not take it away"
    );
    vectors.update(&[(0, message(1))]).unwrap();
    assert!(!vectors.is_pending(0));
    vectors.update(&[(0, None)]).unwrap();
    assert!(!vectors.is_pending(0), "it was delivered, and is not again");
}

#[test]
fn gsis_that_run_out_are_counted_in_the_error_and_come_back() {
    let name = "gsis_that_run_out_are_counted_in_the_error_and_come_back";
    let Some((_, router)) = router(name, 24..26) else {
        return;
    };
    let mut vectors = router.allocate(3).unwrap();
    let all: Vec<_> = (0..3)
        .map(|vector| (vector, message(u32::from(vector))))
        .collect();
    let error = vectors.update(&all).unwrap_err();
    assert!(error.to_string().contains("all 2 GSIs"), "{error}");
    drop(vectors);
    router.allocate(2).unwrap().update(all.get(..2).unwrap()).unwrap();
}

#[test]
fn a_vector_that_is_not_there_is_refused() {
    let Some((_, router)) = router("a_vector_that_is_not_there_is_refused", 24..26) else {
        return;
    };
    let mut vectors = router.allocate(1).unwrap();
    assert_eq!(
        vectors.update(&[(1, message(1))]).unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
    assert!(vectors.trigger(1).is_err());
}
