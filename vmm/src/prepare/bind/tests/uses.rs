//! Devices that the host, or a process, uses.

use super::*;

const SWAP: &str = "Filename Type Size Used Priority\n/dev/nvme0n1 partition 8388604 0 -2\n";

fn disk() -> String {
    format!("sys/devices/pci0000:00/{ONE}/nvme/nvme0/nvme0n1")
}

#[test]
fn refuses_a_device_that_the_host_uses_unless_forced() {
    let disk = format!("sys/devices/pci0000:00/{ONE}/nvme/nvme0/nvme0n1");
    let mount = "22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n";
    let fixture = two().link("sys/dev/block/259:0", &disk).file("proc/self/mountinfo", mount);
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    let named = addresses(&[TWO, ONE]);
    let text = bind(&host, &mut kernel, &named, false).unwrap_err().to_string();
    assert_eq!(
        text,
        "0000:00:02.0: the host uses the device for the root file system (/dev/nvme0n1)\n  \
         to bind it anyway: vmm bind --force 0000:00:02.0"
    );
    assert_eq!(kernel.writes, 0);
    bind(&host, &mut kernel, &named, true).unwrap();
    assert_eq!(drivers(&host, &named), both(VFIO_PCI));
}

#[test]
fn names_the_command_that_ends_the_use_first() {
    let fixture = two().link("sys/class/block/nvme0n1", &disk()).file("proc/swaps", SWAP);
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    let text = bind(&host, &mut kernel, &addresses(&[ONE]), false).unwrap_err().to_string();
    assert_eq!(
        text,
        "0000:00:02.0: the host uses the device for swap space (/dev/nvme0n1)\n  \
         end that use first: swapoff /dev/nvme0n1; to bind it anyway: vmm bind --force 0000:00:02.0"
    );
    assert_eq!(kernel.writes, 0);
}

#[test]
fn refuses_a_disk_that_something_has_open_exclusively_unless_forced() {
    let fixture = two().link("sys/class/block/nvme0n1", &disk());
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    kernel.claimed = Some("dev/nvme0n1");
    let text = bind(&host, &mut kernel, &addresses(&[ONE]), false).unwrap_err().to_string();
    assert!(text.contains("exclusive use of /dev/nvme0n1 (a file system of a"), "{text}");
    assert_eq!(kernel.writes, 0);
    bind(&host, &mut kernel, &addresses(&[TWO]), false).unwrap();
    bind(&host, &mut kernel, &addresses(&[ONE]), true).unwrap();
}

#[test]
fn refuses_a_device_whose_node_a_process_has_open_unless_forced() {
    let fixture = two()
        .file(&format!("sys/devices/pci0000:00/{ONE}/nvme/nvme0/uevent"), "DEVNAME=nvme0\n")
        .process(71, "spdk", "/dev/nvme0");
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    let text = bind(&host, &mut kernel, &addresses(&[ONE]), false).unwrap_err().to_string();
    assert!(text.contains("for spdk (process 71), which has /dev/nvme0 open\n"), "{text}");
    assert_eq!(kernel.writes, 0);
    bind(&host, &mut kernel, &addresses(&[ONE]), true).unwrap();
}

#[test]
fn names_the_process_that_has_the_group_open_even_by_the_node_of_the_device() {
    for (node, folder) in [("/dev/vfio/7", None), ("/dev/vfio/devices/vfio3", Some("vfio3"))] {
        let fixture = Fixture::new().nvme(ONE, 7, Some("vfio-pci")).process(71, "qemu", node);
        let fixture = folder.into_iter().fold(fixture, |fixture, name| {
            fixture.file(&format!("sys/devices/pci0000:00/{ONE}/vfio-dev/{name}/dev"), "511:3\n")
        });
        let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
        let text = unbind(&host, &mut kernel, &addresses(&[ONE]), false).unwrap_err().to_string();
        assert!(text.contains("its group 7 is in use by qemu (process 71)\n"), "{text}");
        assert_eq!(kernel.writes, 0);
    }
}

#[test]
fn refuses_to_unbind_a_physical_function_with_virtual_functions_unless_forced() {
    let fixture = Fixture::new()
        .nvme(ONE, 7, Some("vfio-pci"))
        .file(&format!("sys/devices/pci0000:00/{ONE}/sriov_numvfs"), "4\n");
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    let text = unbind(&host, &mut kernel, &addresses(&[ONE]), false).unwrap_err().to_string();
    for part in ["for its 4 virtual functions", "vmm unbind --force", "echo 0 > /sys/bus/pci"] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    assert_eq!(kernel.writes, 0);
    unbind(&host, &mut kernel, &addresses(&[ONE]), true).unwrap();
}

#[test]
fn refuses_to_unbind_a_device_in_use_unless_forced() {
    let (fixture, named) = (two(), addresses(&[ONE]));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    bind(&host, &mut kernel, &named, false).unwrap();
    kernel.open = true;
    let text = unbind(&host, &mut kernel, &named, false).unwrap_err().to_string();
    for part in ["group 7 is in use", "fuser -v /dev/vfio/7", "vmm unbind --force 0000:00:02.0"] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    assert_eq!(host.binding(named[0]).driver.as_deref(), Some(VFIO_PCI));
    unbind(&host, &mut kernel, &named, true).unwrap();
    assert_eq!(host.binding(named[0]).driver.as_deref(), Some("nvme"));
}

#[test]
fn warns_that_the_host_uses_the_rest_of_a_group() {
    let fixture = two().link("sys/class/block/nvme0n1", &disk()).file("proc/swaps", SWAP);
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    let moved = bind(&host, &mut kernel, &addresses(&[TWO]), false).unwrap();
    let warnings = not_viable_yet(&host, &moved);
    let end = "vmm bind 0000:00:02.0; the host uses 0000:00:02.0 for swap space (/dev/nvme0n1)";
    assert!(warnings[0].ends_with(end), "{warnings:?}");
}
