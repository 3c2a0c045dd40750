//! Tests of the pin's line and of the VFIO device on a real /dev/kvm. They do not run if there is
//! none.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use kvm_ioctls::Kvm;

use super::*;
use crate::host::GroupLink as _;

fn host_of(test: &str) -> Option<KvmHost> {
    let vm =
        Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|vm| vm.create_irq_chip().map(|()| vm));
    let Ok(vm) = vm else {
        eprintln!("{test} did not run: /dev/kvm does not open here");
        return None;
    };
    Some(KvmHost::new(Arc::new(vm), 0..1, 24..32))
}

/// The raised inputs of the IOAPIC, one bit for each.
fn raised(host: &KvmHost) -> u32 {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    host.vm.get_irqchip(&mut chip).unwrap();
    // SAFETY: every variant of the union is plain numbers, and KVM filled in this chip's variant.
    unsafe { chip.chip.ioapic.irr }
}

#[test]
fn an_eventfd_raises_its_line_and_dropping_the_connection_lowers_it() {
    let Some(host) = host_of("an_eventfd_raises_its_line_and_dropping_the_connection_lowers_it")
    else {
        return;
    };
    let line = host.services_with_intx([18, 17, 18, 18]).intx.unwrap();
    for other in [0, 5, u8::MAX] {
        let refused = line.connect(other).err().and_then(|error| error.raw_os_error());
        assert_eq!(refused, Some(libc::EINVAL), "pin {other}");
    }
    let connection = line.connect(2).unwrap();
    assert_eq!(raised(&host), 0);
    connection.trigger().write(1).unwrap();
    // KVM raises a line with a resample fd from a work queue.
    let begin = Instant::now();
    while raised(&host) == 0 && begin.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    assert_eq!(raised(&host), 1 << 17);
    assert_eq!(
        connection.resample().read().unwrap_err().raw_os_error(),
        Some(libc::EAGAIN),
        "not acknowledged yet"
    );
    drop(connection);
    assert_eq!(raised(&host), 0);
    assert_eq!(host.calls().irqfd.value(), 2);
}

#[test]
fn refuses_to_link_a_file_that_is_not_a_group() {
    let Some(host) = host_of("refuses_to_link_a_file_that_is_not_a_group") else {
        return;
    };
    let link = host.link().unwrap();
    let file = File::open("/dev/null").unwrap();
    let error = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(error(link.add(file.as_fd())), Some(libc::EINVAL));
    assert_eq!(error(link.remove(file.as_fd())), Some(libc::ENOENT));
    assert_eq!(host.calls().create_device.value(), 1);
}
