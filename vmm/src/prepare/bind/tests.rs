use std::os::unix::fs::symlink;

use super::super::fixture::{Fixture, write};
use super::super::table;
use super::*;

/// A fake kernel that reacts to these writes, and refuses one of them on request.
struct FakeKernel {
    root: std::path::PathBuf,
    /// The driver that supports all devices.
    native: Option<&'static str>,
    /// Whether vfio-pci accepts devices.
    takes: bool,
    writes: usize,
    refused: Option<usize>,
    open: bool,
    claimed: Option<&'static str>,
    loads: Result<(), String>,
}

impl FakeKernel {
    fn new(fixture: &Fixture) -> Self {
        Self {
            root: fixture.path(""),
            native: Some("nvme"),
            takes: true,
            writes: 0,
            refused: None,
            open: false,
            claimed: None,
            loads: Ok(()),
        }
    }

    fn probe(&self, address: &str) {
        let device = self.root.join("sys/bus/pci/devices").join(address);
        let only = fs::read_to_string(device.join("driver_override")).unwrap();
        let driver = match only.trim() {
            "" | "(null)" => self.native,
            VFIO_PCI if !self.takes => None,
            only => {
                Some(only).filter(|only| self.root.join("sys/bus/pci/drivers").join(only).exists())
            }
        };
        if let (Some(driver), false) = (driver, device.join("driver").exists()) {
            let place = self.root.join("sys/bus/pci/drivers").join(driver);
            fs::create_dir_all(&place).unwrap();
            symlink(place, device.join("driver")).unwrap();
        }
    }
}

impl Kernel for FakeKernel {
    fn write(&mut self, path: &Path, value: &str) -> io::Result<()> {
        self.writes += 1;
        if self.refused == Some(self.writes) {
            return Err(io::Error::from_raw_os_error(nix::libc::EACCES));
        }
        match path.file_name().and_then(|name| name.to_str()) {
            Some("driver_override") => write(path, value.as_bytes()),
            Some("unbind") => fs::remove_file(path.parent().unwrap()).unwrap(),
            Some("drivers_probe") => self.probe(value),
            other => panic!("no such file: {other:?}"),
        }
        Ok(())
    }

    fn keep(&mut self, path: &Path, value: Option<&str>) -> io::Result<()> {
        assert!(path.starts_with(self.root.join("run")));
        ThisKernel.keep(path, value)
    }

    fn load(&mut self, module: &str) -> Result<(), String> {
        assert_eq!(module, VFIO_PCI);
        fs::create_dir_all(self.root.join("sys/bus/pci/drivers/vfio-pci")).unwrap();
        self.loads.clone()
    }

    fn is_open(&mut self, group: &Path) -> bool {
        assert!(group.starts_with(self.root.join("dev/vfio")));
        self.open
    }

    fn is_claimed(&mut self, disk: &Path) -> bool {
        self.claimed.is_some_and(|claimed| disk == self.root.join(claimed))
    }
}

fn addresses(texts: &[&str]) -> Vec<PciAddress> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

const ONE: &str = "0000:00:02.0";
const TWO: &str = "0000:00:03.0";

/// Two NVMe devices in one group on the host's driver, and a third device.
fn two() -> Fixture {
    Fixture::new().nvme(ONE, 7, Some("nvme")).nvme(TWO, 7, Some("nvme")).nvme(
        "0000:00:04.0",
        8,
        None,
    )
}

fn drivers(host: &Inventory, addresses: &[PciAddress]) -> Vec<Option<String>> {
    let driver = |address: &PciAddress| host.binding(*address).driver;
    addresses.iter().map(driver).collect()
}

fn both(name: &str) -> Vec<Option<String>> {
    vec![Some(name.to_owned()); 2]
}

#[test]
fn two_round_trips_restore_the_binding() {
    let (fixture, named) = (two(), addresses(&[ONE, TWO, ONE]));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    for _ in 0..2 {
        let moved = bind(&host, &mut kernel, &named, false).unwrap();
        assert_eq!(moved.len(), 2, "a device that is named twice counts once");
        assert_eq!(drivers(&host, &named[..2]), both(VFIO_PCI));
        assert_eq!(host.binding(named[0]).driver_override.as_deref(), Some(VFIO_PCI));
        let moved = unbind(&host, &mut kernel, &named, false).unwrap();
        assert_eq!(moved[0].after.driver.as_deref(), Some("nvme"));
        assert_eq!(drivers(&host, &named[..2]), both("nvme"));
        assert_eq!(host.binding(named[0]).driver_override, None);
    }
}

#[test]
fn unbind_returns_a_device_to_its_former_driver() {
    let fixture = Fixture::new().nvme(ONE, 7, Some("other"));
    let named = addresses(&[ONE]);
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    bind(&host, &mut kernel, &named, false).unwrap();
    bind(&host, &mut kernel, &named, false).unwrap();
    let kept = fixture.path("run/vmm/former-driver").join(ONE);
    assert_eq!(fs::read_to_string(&kept).unwrap(), "other");
    let moved = unbind(&host, &mut kernel, &named, false).unwrap();
    assert_eq!(moved[0].after.driver.as_deref(), Some("other"));
    assert_eq!(host.binding(named[0]).driver_override, None);
    assert!(!kept.exists());
}

#[test]
fn unbind_ignores_a_former_driver_that_does_not_exist() {
    let fixture = Fixture::new().nvme(ONE, 7, Some("other"));
    let named = addresses(&[ONE]);
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    bind(&host, &mut kernel, &named, false).unwrap();
    for name in ["gone", "../nvme", ""] {
        write(&fixture.path("run/vmm/former-driver").join(ONE), name.as_bytes());
        let moved = unbind(&host, &mut kernel, &named, false).unwrap();
        assert_eq!(moved[0].after.driver.as_deref(), Some("nvme"), "{name:?}");
        bind(&host, &mut kernel, &named, false).unwrap();
    }
}

#[test]
fn a_repeated_command_changes_nothing() {
    let (fixture, named) = (two(), addresses(&[ONE]));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    unbind(&host, &mut kernel, &named, false).unwrap();
    assert_eq!(kernel.writes, 0, "the device is already on the host's driver");
    bind(&host, &mut kernel, &named, false).unwrap();
    let writes = kernel.writes;
    let moved = bind(&host, &mut kernel, &named, false).unwrap();
    assert_eq!(kernel.writes, writes);
    assert_eq!(moved[0].before, moved[0].after);
    assert!(table::moved(&host, &moved).starts_with("0000:00:02.0: vfio-pci, as before"));
}

#[test]
fn a_failed_write_leaves_all_devices_unchanged() {
    let mut failures = 0;
    for refused in 1.. {
        let (fixture, named) = (two(), addresses(&[ONE, TWO]));
        let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
        kernel.refused = Some(refused);
        let Err(error) = bind(&host, &mut kernel, &named, false) else {
            break;
        };
        failures += 1;
        assert_eq!(drivers(&host, &named), both("nvme"), "write {refused}");
        let overrides: Vec<_> = named.iter().map(|a| host.binding(*a).driver_override).collect();
        assert_eq!(overrides, [None, None], "write {refused}");
        let text = error.to_string();
        let device = if refused <= 3 { ONE } else { TWO };
        for part in [device, "cannot ", "writing /", "Permission denied (os error 13)", "sudo"] {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }
    assert_eq!(failures, 6, "three writes per device");
}

#[test]
fn a_failed_unbind_leaves_the_device_bound() {
    for refused in 1..=3 {
        let (fixture, named) = (two(), addresses(&[ONE]));
        let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
        bind(&host, &mut kernel, &named, false).unwrap();
        kernel.refused = Some(kernel.writes + refused);
        unbind(&host, &mut kernel, &named, false).unwrap_err();
        let binding = host.binding(named[0]);
        let is = (binding.driver.as_deref(), binding.driver_override.as_deref());
        assert_eq!(is, (Some(VFIO_PCI), Some(VFIO_PCI)), "write {refused}");
    }
}

#[test]
fn a_device_that_vfio_pci_refuses_goes_back() {
    let (fixture, named) = (two(), addresses(&[ONE]));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    kernel.takes = false;
    let text = bind(&host, &mut kernel, &named, false).unwrap_err().to_string();
    assert!(text.starts_with("0000:00:02.0: vfio-pci refused the device"), "{text}");
    assert_eq!(host.binding(named[0]).driver.as_deref(), Some("nvme"));
}

#[test]
fn reports_a_device_that_does_not_go_back() {
    let (fixture, named) = (two(), addresses(&[ONE]));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    (kernel.takes, kernel.native) = (false, None);
    let text = bind(&host, &mut kernel, &named, false).unwrap_err().to_string();
    assert!(text.contains("the undo failed too: 0000:00:02.0: nvme did not"), "{text}");
}

#[test]
fn reports_a_device_that_vfio_pci_takes_again_by_its_ids() {
    let (fixture, named) = (two(), addresses(&["0000:00:04.0"]));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    bind(&host, &mut kernel, &named, false).unwrap();
    kernel.native = Some(VFIO_PCI);
    let text = unbind(&host, &mut kernel, &named, false).unwrap_err().to_string();
    assert!(text.starts_with("0000:00:04.0: vfio-pci took the device again"), "{text}");
}

#[test]
fn warns_of_a_group_that_is_not_viable_yet_with_the_command() {
    let (fixture, named) = (two(), addresses(&[ONE]));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    let moved = bind(&host, &mut kernel, &named, false).unwrap();
    assert_eq!(
        not_viable_yet(&host, &moved),
        [
            "group 7 is not viable, because 0000:00:03.0 is bound to nvme; bind the rest with: vmm bind 0000:00:03.0"
        ]
    );
    assert_eq!(
        table::moved(&host, &moved),
        "0000:00:02.0: vfio-pci (was: nvme); group 7 also has 0000:00:03.0 (nvme)\n"
    );
    let moved = bind(&host, &mut kernel, &addresses(&[TWO]), false).unwrap();
    assert_eq!(not_viable_yet(&host, &moved), [""; 0]);
}

#[test]
fn refuses_a_device_that_cannot_be_bound_before_any_write() {
    let fixture = two().device("0000:00:05.0", "0x060400", Some(9), Some("pcieport")).device(
        "0000:00:06.0",
        "0x010802",
        None,
        Some("nvme"),
    );
    let cases = [
        ("0000:00:05.0", "the device is a bridge"),
        ("0000:00:06.0", "in no IOMMU group"),
        ("0000:00:07.0", "there is no such PCI device"),
    ];
    for (device, why) in cases {
        let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
        let named = addresses(&[ONE, device]);
        let text = bind(&host, &mut kernel, &named, true).unwrap_err().to_string();
        assert!(text.starts_with(device) && text.contains(why), "{text}");
        assert_eq!(kernel.writes, 0);
    }
}

#[test]
fn binds_a_device_whose_group_the_kernel_makes_when_a_driver_binds() {
    const NEW: &str = "0000:00:06.0";
    let fixture = two().device(NEW, "0x010802", None, None);
    let named = addresses(&[NEW]);
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    let text = bind(&host, &mut kernel, &named, true).unwrap_err().to_string();
    assert!(text.contains("in no IOMMU group"), "this host has no IOMMU: {text}");
    let fixture = fixture.file("sys/class/iommu/smmu3.0x0000000009050000/uevent", "");
    let moved = bind(&fixture.host(), &mut kernel, &named, false).unwrap();
    assert_eq!(moved[0].after.driver.as_deref(), Some(VFIO_PCI));
}

#[test]
fn loads_vfio_pci_or_names_the_command() {
    let (fixture, named) = (two(), addresses(&[ONE]));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    kernel.loads = Err("modprobe: FATAL".to_owned());
    let text = bind(&host, &mut kernel, &named, false).unwrap_err().to_string();
    for part in [ONE, "modprobe: FATAL", "sudo modprobe vfio-pci"] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    assert_eq!(kernel.writes, 0);
}

#[test]
fn a_device_that_is_already_bound_needs_no_driver_and_no_check() {
    let fixture = two().nvme("0000:00:05.0", 9, Some("mlx5_vfio_pci"));
    let (host, mut kernel) = (fixture.host(), FakeKernel::new(&fixture));
    kernel.loads = Err("modprobe: FATAL".to_owned());
    kernel.open = true;
    bind(&host, &mut kernel, &addresses(&["0000:00:05.0"]), false).unwrap();
    unbind(&host, &mut kernel, &addresses(&[ONE]), false).unwrap();
    assert_eq!(kernel.writes, 0);
}

mod uses;
