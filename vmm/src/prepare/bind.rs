//! Binds devices to vfio-pci and back. A command moves all named devices or none: if a step fails,
//! the module undoes the earlier steps.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use vfio_passthrough::PciAddress;

use super::error::Error;
use super::holders::{self, Holder, Opened, summary};
use super::inventory::{Binding, Device, Inventory, bind_command, shared};
use super::plan::{Step, VFIO_PCI, back, to_host, to_vfio};

/// The operations that change the host.
pub(crate) trait Kernel {
    /// Writes a sysfs attribute.
    fn write(&mut self, path: &Path, value: &str) -> io::Result<()>;
    /// Writes a file that lasts until the host shuts down, or removes it.
    fn keep(&mut self, path: &Path, value: Option<&str>) -> io::Result<()>;
    /// Loads a module.
    fn load(&mut self, module: &str) -> Result<(), String>;
    /// Whether a process has a group open.
    fn is_open(&mut self, group: &Path) -> bool;
    /// Whether something has a block device open exclusively.
    fn is_claimed(&mut self, disk: &Path) -> bool;
}

/// The kernel of this host.
pub(crate) struct ThisKernel;

impl Kernel for ThisKernel {
    fn write(&mut self, path: &Path, value: &str) -> io::Result<()> {
        // Do not create the file: a missing attribute must fail with ENOENT.
        let mut file = fs::File::options().write(true).open(path)?;
        io::Write::write_all(&mut file, value.as_bytes())
    }

    fn keep(&mut self, path: &Path, value: Option<&str>) -> io::Result<()> {
        let Some(value) = value else {
            return match fs::remove_file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
        };
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, value)
    }

    fn load(&mut self, module: &str) -> Result<(), String> {
        match Command::new("modprobe").arg(module).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn is_open(&mut self, group: &Path) -> bool {
        let opened = fs::File::options().read(true).write(true).open(group);
        opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }

    fn is_claimed(&mut self, disk: &Path) -> bool {
        holders::is_claimed(disk)
    }
}

/// The result for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) address: PciAddress,
    pub(crate) before: Binding,
    pub(crate) after: Binding,
}

/// Binds devices to vfio-pci.
pub(crate) fn bind(
    host: &Inventory,
    kernel: &mut dyn Kernel,
    named: &[PciAddress],
    force: bool,
) -> Result<Vec<Moved>, Error> {
    let devices = found(host, named)?;
    devices.iter().try_for_each(|device| can_be_bound(host, device))?;
    let asked: Vec<_> = devices.iter().filter(|device| !device.binding.vfio).collect();
    if !force {
        refuse_held(host, kernel, &asked)?;
    }
    if let Some(first) = asked.first() {
        load_driver(host, kernel, first.address)?;
    }
    move_all(host, kernel, &devices, |kernel, device| {
        carry_out(host, kernel, device.address, &to_vfio(&device.binding))?;
        if !host.binding(device.address).vfio {
            return Err(Error::NotTaken(device.address));
        }
        let former = device.binding.driver.as_deref();
        if !device.binding.vfio {
            keep_former(host, kernel, device.address, former);
        }
        Ok(())
    })
}

/// The file that holds the name of a device's former driver while vfio-pci has the device.
fn former_driver(address: PciAddress) -> String {
    format!("run/vmm/former-driver/{address}")
}

/// Saves the name of the former driver. Without the file, `unbind` lets the kernel choose a driver.
fn keep_former(
    host: &Inventory,
    kernel: &mut dyn Kernel,
    address: PciAddress,
    driver: Option<&str>,
) {
    let path = host.tree.path(&former_driver(address));
    if let Err(error) = kernel.keep(&path, driver) {
        log::warn!(
            "{address}: the name of the former driver could not be written to {}: {error}",
            path.display()
        );
    }
}

/// The former driver, if it is still loaded.
fn find_former(host: &Inventory, address: PciAddress) -> Option<String> {
    let name = host.tree.line(&former_driver(address))?;
    let is_there =
        !name.contains('/') && host.tree.path(&format!("sys/bus/pci/drivers/{name}")).exists();
    is_there.then_some(name)
}

/// Returns devices to their former drivers, or to drivers that support them.
pub(crate) fn unbind(
    host: &Inventory,
    kernel: &mut dyn Kernel,
    named: &[PciAddress],
    force: bool,
) -> Result<Vec<Moved>, Error> {
    let devices = found(host, named)?;
    for device in devices.iter().filter(|device| device.binding.vfio && !force) {
        refuse_open(host, kernel, device)?;
        refuse_physical(host, device)?;
    }
    move_all(host, kernel, &devices, |kernel, device| {
        let former = find_former(host, device.address);
        let steps = to_host(&device.binding, former.as_deref());
        carry_out(host, kernel, device.address, &steps)?;
        if host.binding(device.address).vfio {
            return Err(Error::TakenAgain(device.address));
        }
        keep_former(host, kernel, device.address, None);
        Ok(())
    })
}

/// Warnings about groups that are not viable yet, although some members were bound.
pub(crate) fn not_viable_yet(host: &Inventory, moved: &[Moved]) -> Vec<String> {
    let mut groups: Vec<_> = moved.iter().filter_map(|m| host.sysfs.group(m.address)).collect();
    groups.sort_unstable();
    groups.dedup();
    let warning = |group: u32| {
        let others = host.sysfs.offenders(group);
        let text =
            format!("{}; bind the rest with: {}", shared(group, &others), bind_command(&others));
        let used = used(host, &others);
        (!others.is_empty()).then(|| text + &used)
    };
    groups.into_iter().filter_map(warning).collect()
}

/// What `vmm bind` would say of these devices: which of them the host uses.
fn used(host: &Inventory, others: &[(PciAddress, String)]) -> String {
    let holders = holders::holders(&host.tree);
    let used = others.iter().filter_map(|(address, _)| {
        let (what, _) = summary(&holders, *address)?;
        Some(format!("; the host uses {address} for {what}"))
    });
    used.collect()
}

/// The named devices, each once.
fn found(host: &Inventory, named: &[PciAddress]) -> Result<Vec<Device>, Error> {
    let first =
        |(index, address): &(usize, &PciAddress)| !named.iter().take(*index).any(|n| n == *address);
    let once = named.iter().enumerate().filter(first);
    once.map(|(_, address)| host.device(*address).ok_or(Error::NoDevice(*address))).collect()
}

fn can_be_bound(host: &Inventory, device: &Device) -> Result<(), Error> {
    match device {
        _ if device.is_bridge() => Err(Error::Bridge(device.address)),
        Device { group: None, .. } if !host.has_group_later(device) => {
            Err(Error::NoGroup(device.address))
        }
        _ => Ok(()),
    }
}

fn refuse_held(
    host: &Inventory,
    kernel: &mut dyn Kernel,
    devices: &[&Device],
) -> Result<(), Error> {
    let addresses: Vec<_> = devices.iter().map(|device| device.address).collect();
    let mut holders = holders::holders(&host.tree);
    holders.extend(Opened::of(&host.tree).holders(&host.tree, &addresses));
    for address in addresses {
        let uses = holders::uses(&host.tree, &holders, address, |disk| kernel.is_claimed(disk));
        if let Some((what, remedy)) = uses {
            return Err(Error::Held { address, what, remedy, command: "bind" });
        }
    }
    Ok(())
}

fn refuse_open(host: &Inventory, kernel: &mut dyn Kernel, device: &Device) -> Result<(), Error> {
    let Device { address, group: Some(group), .. } = *device else {
        return Ok(());
    };
    let opened = Opened::of(&host.tree);
    let by = opened.by(&host.vfio_nodes(address, group));
    let mut is_open = || kernel.is_open(&host.tree.path(&format!("dev/vfio/{group}")));
    match by.is_some() || is_open() {
        true => Err(Error::InUse { address, group, by: by.unwrap_or("a process").to_owned() }),
        false => Ok(()),
    }
}

/// vfio-pci removes the virtual functions of a physical function that it loses.
fn refuse_physical(host: &Inventory, device: &Device) -> Result<(), Error> {
    let address = device.address;
    match holders::virtual_functions(&host.tree, address) {
        Some(Holder { what, remedy, .. }) => {
            Err(Error::Held { address, what, remedy, command: "unbind" })
        }
        None => Ok(()),
    }
}

fn load_driver(
    host: &Inventory,
    kernel: &mut dyn Kernel,
    address: PciAddress,
) -> Result<(), Error> {
    if host.tree.path("sys/bus/pci/drivers/vfio-pci").exists() {
        return Ok(());
    }
    kernel.load(VFIO_PCI).map_err(|why| Error::NoDriver { address, why })
}

/// Moves each device. If one fails, moves it and the earlier devices back.
fn move_all(
    host: &Inventory,
    kernel: &mut dyn Kernel,
    devices: &[Device],
    mut one: impl FnMut(&mut dyn Kernel, &Device) -> Result<(), Error>,
) -> Result<Vec<Moved>, Error> {
    for (index, device) in devices.iter().enumerate() {
        if let Err(first) = one(kernel, device) {
            let touched = devices.iter().take(index.saturating_add(1));
            let undone: Vec<_> = touched.map(|device| put_back(host, kernel, device)).collect();
            return Err(match undone.into_iter().find_map(Result::err) {
                Some(second) => Error::NotUndone { first: first.into(), second: second.into() },
                None => first,
            });
        }
    }
    let moved = |device: &Device| Moved {
        address: device.address,
        before: device.binding.clone(),
        after: host.binding(device.address),
    };
    Ok(devices.iter().map(moved).collect())
}

fn put_back(host: &Inventory, kernel: &mut dyn Kernel, device: &Device) -> Result<(), Error> {
    let address = device.address;
    let now = host.binding(address);
    carry_out(host, kernel, address, &back(&device.binding, &now))?;
    match &device.binding.driver {
        Some(driver) if host.binding(address).driver.as_ref() != Some(driver) => {
            Err(Error::NotReturned { address, driver: driver.clone() })
        }
        _ => Ok(()),
    }
}

fn carry_out(
    host: &Inventory,
    kernel: &mut dyn Kernel,
    address: PciAddress,
    steps: &[Step],
) -> Result<(), Error> {
    for step in steps {
        let (path, value) = step.write(address);
        let path = host.tree.path(&path);
        log::info!("{address}: {value:?} > {}", path.display());
        kernel.write(&path, &value).map_err(|source| Error::Write {
            address,
            operation: step.purpose(),
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
