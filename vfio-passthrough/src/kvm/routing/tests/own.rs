//! Tests of the VMM's own routes, beside the routes of functions.

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_irq_routing_entry};

use super::deferred::{Setup, to_cpu};
use super::*;

fn route(gsi: u32, vector: u16) -> kvm_irq_routing_entry {
    let message = to_cpu(vector).unwrap();
    entries::route(gsi, entries::Msi { message, device_id: None })
}

#[test]
fn one_table_has_routes_of_the_vmm_and_of_functions() {
    let name = "one_table_has_routes_of_the_vmm_and_of_functions";
    let Some(setup) = Setup::new(name) else {
        return;
    };
    let (router, deferring) = (&setup.router, setup.router.defer_routes().unwrap());
    let mut vectors = router.allocate(1).unwrap();
    vectors.update(&[(0, to_cpu(0))]).unwrap();
    let gsi = router.allocate_gsi().unwrap();
    router.set_routes(&[route(gsi.number(), 1)]).unwrap();
    assert_eq!(
        (setup.commits(), setup.calls.irqfd.value()),
        (1, 1),
        "the deferred route is committed too"
    );
    let own = EventFd::new(EFD_NONBLOCK).unwrap();
    setup.vm.register_irqfd(&own, gsi.number()).unwrap();
    own.write(1).unwrap();
    vectors.trigger(0).unwrap().write(1).unwrap();
    assert_eq!(setup.arrived_at_last(2), [0, 1]);
    setup.vm.unregister_irqfd(&own, gsi.number()).unwrap();
    drop(gsi);
    assert_eq!(setup.commits(), 2);
    vectors.trigger(0).unwrap().write(1).unwrap();
    assert_eq!(setup.arrived_at_last(1), [0], "the function keeps its route");
    drop((vectors, deferring));
    assert!(router.shared.lock().is_empty());
}

#[test]
fn refuses_routes_of_the_vmm_for_gsis_of_functions() {
    let name = "refuses_routes_of_the_vmm_for_gsis_of_functions";
    let Some((calls, router)) = router(name, 24..28) else {
        return;
    };
    let mut vectors = router.allocate(1).unwrap();
    vectors.update(&messages(0..1)).unwrap();
    let errno = |gsi| router.set_routes(&[route(gsi, 1)]).unwrap_err().raw_os_error();
    assert_eq!((errno(24), errno(27)), (Some(libc::EINVAL), Some(libc::EINVAL)));
    router.remove_routes(24..28).unwrap();
    assert_eq!(calls.set_gsi_routing.value(), 1, "the VMM has none there");
    router.set_routes(&[route(28, 1), route(29, 2)]).unwrap();
    assert_eq!(router.shared.lock().routed(), [24]);
    let own: Vec<_> = (0..3).map(|_| router.allocate_gsi().unwrap()).collect();
    assert_eq!(router.allocate_gsi().unwrap_err().kind(), io::ErrorKind::StorageFull);
    drop(own);
    router.allocate(3).unwrap().update(&messages(0..3)).unwrap();
}

#[test]
fn routes_of_the_vmm_leave_fewer_gsis() {
    let Some((_, router)) = router("routes_of_the_vmm_leave_fewer_gsis", 24..4096) else {
        return;
    };
    let own: Vec<_> = (4096..4100).map(|gsi| route(gsi, 1)).collect();
    // KVM has no GSI from 4096 on (`KVM_MAX_IRQ_ROUTES`).
    assert_eq!(router.set_routes(&own).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let own: Vec<_> = (0..4).flat_map(|gsi| [route(gsi, 1), route(gsi, 2)]).collect();
    let refused = router.set_routes(&own).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "a GSI has one MSI route");
    router.remove_routes(0..24).unwrap();
    assert_eq!(router.shared.lock().take(&vec![eventfd(); 4072]).unwrap().len(), 4072);
}

fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

#[test]
fn routes_vectors_of_a_split_irqchip_after_the_pins_are_removed() {
    let name = "routes_vectors_of_a_split_irqchip_after_the_pins_are_removed";
    let Ok(vm) = Kvm::new().and_then(|kvm| kvm.create_vm()) else {
        return eprintln!("{name} did not run: /dev/kvm does not open here");
    };
    let split =
        kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&split).unwrap();
    let router = KvmRouter::new(Arc::new(vm), 24..4096, Arc::default());
    let mut vectors = router.allocate(2).unwrap();
    assert_eq!(vectors.update(&messages(0..2)).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    router.remove_routes(0..24).unwrap();
    vectors.update(&messages(0..2)).unwrap();
}
