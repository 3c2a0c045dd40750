//! On any host, a device that `vmm devices` calls ready opens: `vfio-model` decides.

use proptest::prelude::*;
use vfio_model::{Description, Driver, Kernel, PciFunction, System};

use super::super::super::holders;
use super::*;

/// `VFIO_TYPE1v2_IOMMU` (linux/vfio.h).
const TYPE1V2: u64 = 3;

/// A function of a host that is made up.
#[derive(Clone, Debug)]
struct Function {
    driver: Option<&'static str>,
    group: u32,
    is_bridge: bool,
    /// The number of its physical function.
    physical: Option<usize>,
}

/// A host that is made up.
#[derive(Clone, Debug)]
struct Host {
    functions: Vec<Function>,
    noiommu: Option<u32>,
    /// The group that another process has open.
    open: Option<u32>,
    /// The group with memory that the firmware uses.
    fixed: Option<u32>,
    /// The group without a node.
    absent: Option<u32>,
    has_groups: bool,
    remaps: bool,
}

const DRIVERS: [Option<&str>; 6] = [
    None,
    Some("vfio-pci"),
    Some("mlx5_vfio_pci"),
    Some("nvme"),
    Some("pcieport"),
    Some("pci-stub"),
];

fn function() -> impl Strategy<Value = Function> {
    (0..DRIVERS.len(), 0..3_u32, prop::bool::weighted(0.1), prop::option::weighted(0.2, 0..4_usize))
        .prop_map(|(driver, group, is_bridge, physical)| Function {
            driver: DRIVERS[driver],
            group,
            is_bridge,
            physical,
        })
}

fn host() -> impl Strategy<Value = Host> {
    let group = || prop::option::weighted(0.3, 0..3_u32);
    let functions = prop::collection::vec(function(), 1..5);
    let likely = || prop::bool::weighted(0.9);
    (functions, group(), group(), group(), group(), likely(), likely()).prop_map(
        |(functions, noiommu, open, fixed, absent, has_groups, remaps)| Host {
            functions,
            noiommu,
            open,
            fixed,
            absent,
            has_groups,
            remaps,
        },
    )
}

fn address(index: usize) -> String {
    format!("0000:00:{:02x}.0", index + 1)
}

fn is_vfio(driver: Option<&str>) -> bool {
    driver.is_some_and(|name| name.contains("vfio"))
}

impl Host {
    /// Its files.
    fn fixture(&self) -> Fixture {
        let interrupts = if self.remaps { REMAPPED } else { "" };
        let start = Fixture::new()
            .file("proc/interrupts", interrupts)
            .file("sys/class/vfio-dev/vfio0/dev", "511:0\n");
        let start = if self.has_groups { start.file("sys/class/vfio/0/dev", "") } else { start };
        let all = self.functions.iter().enumerate();
        let fixture = all.fold(start, |fixture, (index, function)| function.add(index, fixture));
        let fixture = self.noiommu.iter().fold(fixture, |fixture, group| {
            fixture.file(&format!("sys/kernel/iommu_groups/{group}/name"), "vfio-noiommu\n")
        });
        let fixture = self.fixed.iter().fold(fixture, |fixture, group| {
            let regions = format!("sys/kernel/iommu_groups/{group}/reserved_regions");
            fixture.file(&regions, "0x7b800000 0x7fffffff direct\n")
        });
        self.absent.iter().for_each(|group| {
            let _ = std::fs::remove_file(fixture.path(&format!("dev/vfio/{group}")));
        });
        let open = self.open.map(|group| format!("/dev/vfio/{group}"));
        open.iter().fold(fixture, |fixture, node| fixture.process(71, "qemu", node))
    }

    /// The same host, as a program. Another process has a group open.
    fn system(&self) -> System {
        let start = Description::new(Kernel::Linux6_12);
        let all = self.functions.iter().enumerate();
        let description = all.fold(start, |description, (index, function)| {
            let address = address(index).parse().unwrap();
            let driver = function.driver_of_model();
            description.device(address, function.group, driver, PciFunction::nvme())
        });
        let system = description.build();
        self.open.iter().for_each(|group| drop(system.open_group(*group)));
        system
    }

    /// What the kernel does when `vmm` opens the function. The model has no firmware, no nodes
    /// and no tokens, so the rules about these are here.
    fn open(&self, index: usize) -> Result<(), String> {
        let function = &self.functions[index];
        let group = function.group;
        let refused = |is: bool, why: &str| if is { Err(why.to_owned()) } else { Ok(()) };
        refused(!self.has_groups || self.absent == Some(group), "ENOENT")?;
        let system = self.system();
        let container = system.open_container();
        let text = |error: std::io::Error| error.to_string();
        let file = system.open_group(group).map_err(text)?;
        system.set_container(file, container).map_err(text)?;
        refused(self.fixed == Some(group) || !self.remaps, "EPERM")?;
        refused(self.noiommu == Some(group), "KVM refuses it")?;
        system.set_iommu(container, TYPE1V2).map_err(text)?;
        let physical = function.physical.and_then(|index| self.functions.get(index));
        refused(physical.is_some_and(|physical| is_vfio(physical.driver)), "EACCES")?;
        system.open_device(file, &address(index)).map_err(text)?;
        Ok(())
    }
}

impl Function {
    fn add(&self, index: usize, fixture: Fixture) -> Fixture {
        let class = if self.is_bridge { "0x060400" } else { "0x010802" };
        let fixture = fixture.device(&address(index), class, Some(self.group), self.driver);
        let Some(physical) = self.physical else { return fixture };
        let folder = format!("sys/devices/pci0000:00/{}", address(index));
        let target = format!("sys/devices/pci0000:00/{}", address(physical));
        fixture.link(&format!("{folder}/physfn"), &target)
    }

    fn driver_of_model(&self) -> Driver {
        match self.driver {
            None => Driver::None,
            // vfio-pci refuses bridges.
            Some(_) if is_vfio(self.driver) && self.is_bridge => Driver::None,
            Some(_) if is_vfio(self.driver) => Driver::Vfio,
            Some("pcieport") => Driver::Bridge,
            Some("pci-stub") => Driver::Stub,
            Some(_) => Driver::Host,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A ready device opens, and a device that does not open has a line of `check` that fails.
    #[test]
    fn a_ready_device_opens_and_a_failure_was_predicted(host in host()) {
        let fixture = host.fixture();
        let inventory = fixture.host();
        for index in 0..host.functions.len() {
            let address = address(index).parse().unwrap();
            let why = inventory.obstacle(&inventory.device(address).unwrap());
            let opened = host.open(index);
            // The test gives no token.
            let ready = why.is_none() && inventory.sysfs.vf_token_of(address).is_none();
            prop_assert_eq!(ready, opened.is_ok(), "{}: {:?}, {:?}", address, why, opened);
            let lines = check(&inventory, &probes(), &[address], "1G".parse().unwrap());
            let predicts = |line: &Line| line.status == Status::Fail || line.check == "vf-token";
            // The fixture cannot make open() fail with EBUSY.
            let is_busy = host.open == Some(host.functions[index].group);
            prop_assert!(lines.iter().any(predicts) || opened.is_ok() || is_busy, "{:?}", opened);
        }
        prop_assert!(holders::holders(&fixture.tree()).is_empty());
    }
}
