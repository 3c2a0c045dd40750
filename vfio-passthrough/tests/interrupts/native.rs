//! Tests of the number of calls: a device of the model with interrupts through a real KVM. They do
//! not run if there is no KVM.

use super::*;
use kvm_ioctls::Kvm;
use vfio_passthrough::kvm::KvmHost;

struct Native {
    setup: Setup,
    host: KvmHost,
}

impl Native {
    fn new(test: &str, vectors: u16, flags: IrqFlags, gsis: std::ops::Range<u32>) -> Option<Self> {
        let vm = Kvm::new()
            .and_then(|kvm| kvm.create_vm())
            .and_then(|vm| vm.create_irq_chip().map(|()| vm));
        let Ok(vm) = vm else {
            eprintln!("{test} did not run: /dev/kvm does not open here");
            return None;
        };
        let host = KvmHost::new(Arc::new(vm), 0..1, gsis);
        let faults = Arc::new(Faults::default());
        let device =
            PciDevice::with_interrupts(faults.clone(), None, Some((vectors, flags))).unwrap();
        let device = Arc::new(device);
        let address = "01:00.0".parse().unwrap();
        let function = PassthroughFunction::new(
            address,
            device.clone(),
            &host.services(),
            ResetPolicy::Required,
        )
        .unwrap();
        let setup = Setup { guest: Guest::new(faults.clone()), faults, device, function };
        Some(Self { setup, host })
    }

    /// Commits, irqfd calls and SET_IRQS calls so far.
    fn costs(&self) -> (u64, u64, u64) {
        let calls = self.host.calls();
        (calls.set_gsi_routing.value(), calls.irqfd.value(), self.setup.set_irqs())
    }
}

#[test]
fn clearing_the_function_mask_of_64_vectors_needs_one_commit_and_one_call() {
    let name = "clearing_the_function_mask_of_64_vectors_needs_one_commit_and_one_call";
    let Some(native) = Native::new(name, 64, DYNAMIC, 24..4096) else {
        return;
    };
    let _deferring = native.host.router().defer_routes().unwrap();
    let setup = &native.setup;
    setup.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
    assert_eq!(native.costs(), (0, 0, 1));
    for vector in 0..64 {
        setup.program(vector);
        setup.mask(vector, false);
    }
    assert_eq!(native.costs(), (0, 0, 1));
    setup.write(MSIX_CONTROL, ENABLE);
    assert_eq!(native.costs(), (1, 64, 2));
    setup.mask(9, true);
    setup.mask(9, false);
    assert_eq!(native.costs(), (1, 66, 2), "a mask cycle");
    setup.program(9);
    setup.mask(9, false);
    assert_eq!(native.costs(), (1, 66, 2), "unchanged writes");
}

#[test]
fn unmasking_64_vectors_one_by_one_needs_fewer_than_8_commits() {
    let name = "unmasking_64_vectors_one_by_one_needs_fewer_than_8_commits";
    for (flags, calls) in [(DYNAMIC, 65), (NORESIZE, 1)] {
        let Some(native) = Native::new(name, 64, flags, 24..4096) else {
            return;
        };
        let deferring = native.host.router().defer_routes().unwrap();
        let setup = &native.setup;
        setup.write(MSIX_CONTROL, ENABLE);
        for vector in 0..64 {
            setup.program(vector);
            setup.mask(vector, false);
        }
        for vector in 0..64 {
            setup.device.raise(vector).unwrap();
            deferring.flush();
        }
        let (commits, irqfds, set_irqs) = native.costs();
        assert!(commits < 8, "{commits} commits, {flags:?}");
        assert_eq!((irqfds, set_irqs), (64, calls), "{flags:?}");
    }
}

#[test]
fn three_vectors_of_a_large_table_need_three_irqfds() {
    let name = "three_vectors_of_a_large_table_need_three_irqfds";
    let Some(native) = Native::new(name, 2048, DYNAMIC, 24..27) else {
        return;
    };
    let setup = &native.setup;
    for vector in [0, 700, 2047] {
        setup.program(vector);
        setup.mask(vector, false);
    }
    setup.write(MSIX_CONTROL, ENABLE);
    assert_eq!(native.costs(), (1, 3, 2), "enabled, then all three bound");
    let irqs = setup.device.irqs();
    assert_eq!((irqs.bound.len(), irqs.allocated.len()), (3, 3));
}

#[test]
fn a_vector_without_a_gsi_is_pending_until_one_is_free() {
    let name = "a_vector_without_a_gsi_is_pending_until_one_is_free";
    let Some(native) = Native::new(name, 8, DYNAMIC, 24..26) else {
        return;
    };
    let mut other = native.host.services().msi.allocate(1).unwrap();
    let message = MsiMessage { address: 0xfee0_0000, data: 0x41 };
    other.update(&[(0, Some(message))]).unwrap();
    let setup = &native.setup;
    for vector in 0..2 {
        setup.program(vector);
        setup.mask(vector, false);
    }
    let (commits, irqfds, _) = native.costs();
    setup.write(MSIX_CONTROL, ENABLE);
    assert_eq!(
        (native.costs().0, native.costs().1),
        (commits + 1, irqfds + 1),
        "two vectors need two GSIs, and one is free: one of them works"
    );
    // The guest can read pending bits only while the function decodes memory.
    setup.write(COMMAND, 2);
    setup.device.raise(1).unwrap();
    assert_eq!(setup.pending(), 0b10);
    drop(other);
    // Any further change by the guest retries the failed one.
    setup.program(5);
    assert_eq!((setup.pending(), native.host.calls().irqfd.value()), (0, irqfds + 3));
}
