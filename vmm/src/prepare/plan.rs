//! Decides which sysfs writes bind a device to vfio-pci or return it to the host
//! (Documentation/ABI/testing/sysfs-bus-pci). Pure functions from bindings to steps.

use vfio_passthrough::PciAddress;

use super::inventory::{Binding, attribute};

/// The driver that exposes devices to userspace.
pub(crate) const VFIO_PCI: &str = "vfio-pci";

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Sets the only driver that may bind to the device, or clears the override.
    Override(Option<String>),
    /// Unbinds the device from its driver.
    Unbind,
    /// Makes the kernel probe for a driver.
    Probe,
}

impl Step {
    /// The path and the value of the write.
    pub(crate) fn write(&self, address: PciAddress) -> (String, String) {
        match self {
            // An empty line clears the override.
            Self::Override(driver) => {
                let value = driver.clone().unwrap_or_else(|| "\n".to_owned());
                (attribute(address, "driver_override"), value)
            }
            Self::Unbind => (attribute(address, "driver/unbind"), address.to_string()),
            Self::Probe => ("sys/bus/pci/drivers_probe".to_owned(), address.to_string()),
        }
    }

    /// The purpose, for errors.
    pub(crate) fn purpose(&self) -> &'static str {
        match self {
            Self::Override(_) => "set the driver override",
            Self::Unbind => "unbind the driver",
            Self::Probe => "probe for a driver",
        }
    }
}

/// The steps that bind a device to vfio-pci; none if a VFIO driver has it already.
pub(crate) fn to_vfio(now: &Binding) -> Vec<Step> {
    if now.vfio {
        return Vec::new();
    }
    // Set the override first, so that no other driver can bind in between.
    let mut steps = override_steps(now, Some(VFIO_PCI));
    steps.extend(now.driver.is_some().then_some(Step::Unbind));
    steps.push(Step::Probe);
    steps
}

/// The steps that return a device to its former driver, or, if that is unknown, to any driver that
/// supports it; none if a host driver has it already.
pub(crate) fn to_host(now: &Binding, former: Option<&str>) -> Vec<Step> {
    let ours = now.driver_override.as_deref() == Some(VFIO_PCI)
        || now.vfio && now.driver_override.is_some() && now.driver_override == now.driver;
    let wanted = now.driver_override.as_deref().filter(|_| !ours);
    if let Some(former) = former.filter(|_| now.vfio) {
        let only = |driver: Option<&str>| Step::Override(driver.map(str::to_owned));
        return vec![only(Some(former)), Step::Unbind, Step::Probe, only(wanted)];
    }
    let mut steps = override_steps(now, wanted);
    steps.extend(now.vfio.then_some(Step::Unbind));
    steps.extend((now.vfio || now.driver.is_none()).then_some(Step::Probe));
    steps
}

/// The steps that restore the binding `before`.
pub(crate) fn back(before: &Binding, now: &Binding) -> Vec<Step> {
    let mut steps = override_steps(now, before.driver_override.as_deref());
    if now.driver != before.driver {
        steps.extend(now.driver.is_some().then_some(Step::Unbind));
        steps.extend(before.driver.is_some().then_some(Step::Probe));
    }
    steps
}

fn override_steps(now: &Binding, wanted: Option<&str>) -> Vec<Step> {
    let step = Step::Override(wanted.map(str::to_owned));
    let differs = now.driver_override.as_deref() != wanted;
    differs.then_some(step).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(driver: Option<&str>, driver_override: Option<&str>) -> Binding {
        Binding {
            driver: driver.map(str::to_owned),
            vfio: driver.is_some_and(|name| name.contains("vfio")),
            driver_override: driver_override.map(str::to_owned),
        }
    }

    fn only(driver: Option<&str>) -> Step {
        Step::Override(driver.map(str::to_owned))
    }

    const VFIO: Option<&str> = Some(VFIO_PCI);
    const NVME: Option<&str> = Some("nvme");

    #[test]
    fn binds_to_vfio() {
        let cases = [
            (binding(NVME, None), vec![only(VFIO), Step::Unbind, Step::Probe]),
            (binding(NVME, VFIO), vec![Step::Unbind, Step::Probe]),
            (binding(None, None), vec![only(VFIO), Step::Probe]),
            (binding(None, NVME), vec![only(VFIO), Step::Probe]),
            (binding(None, VFIO), vec![Step::Probe]),
            (binding(VFIO, VFIO), vec![]),
            (binding(VFIO, None), vec![]),
            (binding(Some("mlx5_vfio_pci"), None), vec![]),
        ];
        cases.into_iter().for_each(|(now, steps)| assert_eq!(to_vfio(&now), steps, "{now:?}"));
    }

    #[test]
    fn returns_to_the_host() {
        let mlx5 = Some("mlx5_vfio_pci");
        let cases = [
            (binding(VFIO, VFIO), vec![only(None), Step::Unbind, Step::Probe]),
            (binding(mlx5, mlx5), vec![only(None), Step::Unbind, Step::Probe]),
            (binding(VFIO, None), vec![Step::Unbind, Step::Probe]),
            (binding(None, VFIO), vec![only(None), Step::Probe]),
            (binding(None, None), vec![Step::Probe]),
            (binding(NVME, VFIO), vec![only(None)]),
            (binding(NVME, None), vec![]),
            // The administrator set an override.
            (binding(None, NVME), vec![Step::Probe]),
            (binding(NVME, NVME), vec![]),
        ];
        cases
            .into_iter()
            .for_each(|(now, steps)| assert_eq!(to_host(&now, None), steps, "{now:?}"));
    }

    #[test]
    fn returns_to_the_former_driver() {
        let there = vec![only(NVME), Step::Unbind, Step::Probe, only(None)];
        let cases = [
            (binding(VFIO, VFIO), there.clone()),
            (binding(VFIO, None), there),
            (binding(NVME, VFIO), vec![only(None)]),
            (binding(None, None), vec![Step::Probe]),
        ];
        cases
            .into_iter()
            .for_each(|(now, steps)| assert_eq!(to_host(&now, NVME), steps, "{now:?}"));
    }

    #[test]
    fn restores_the_former_binding_from_every_state() {
        let before = binding(NVME, None);
        let cases = [
            (binding(NVME, None), vec![]),
            (binding(NVME, VFIO), vec![only(None)]),
            (binding(None, VFIO), vec![only(None), Step::Probe]),
            (binding(VFIO, VFIO), vec![only(None), Step::Unbind, Step::Probe]),
        ];
        cases
            .into_iter()
            .for_each(|(now, steps)| assert_eq!(back(&before, &now), steps, "{now:?}"));
        let driverless = binding(None, NVME);
        let steps = [only(NVME), Step::Unbind];
        assert_eq!(back(&driverless, &binding(VFIO, VFIO)), steps);
    }

    #[test]
    fn each_step_is_one_write() {
        let address = "01:00.0".parse().unwrap();
        let folder = "sys/bus/pci/devices/0000:01:00.0";
        let cases = [
            (only(VFIO), format!("{folder}/driver_override"), "vfio-pci"),
            (only(None), format!("{folder}/driver_override"), "\n"),
            (Step::Unbind, format!("{folder}/driver/unbind"), "0000:01:00.0"),
            (Step::Probe, "sys/bus/pci/drivers_probe".into(), "0000:01:00.0"),
        ];
        cases.into_iter().for_each(|(step, path, value)| {
            assert_eq!(step.write(address), (path, value.to_owned()))
        });
    }
}
