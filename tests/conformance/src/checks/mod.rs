//! Named checks of the rules, for any implementation.

mod cdevs;
mod compat;
mod devices;
mod dirty;
mod dma;
mod files;
mod iommufd;

use std::fmt::Debug;
use std::io;
use std::panic::Location;

use serde::Serialize;
use vfio_model::{Fd, Kernel};

use crate::arena::PAGE;
use crate::{Core, Scene};

/// The reason why a check fails.
pub type Verdict = Result<(), String>;

/// The name of a check, and its function.
pub type Check<C> = (&'static str, fn(&mut Stage<'_, C>) -> Verdict);

/// All checks of a kernel, which may have iommufd.
#[must_use]
pub fn all<C: Core>(has_iommufd: bool) -> Vec<Check<C>> {
    let iommufd = match has_iommufd {
        true => [iommufd::checks(), cdevs::checks(), compat::checks()].concat(),
        false => iommufd::without(),
    };
    [files::checks(), dma::checks(), dirty::checks(), devices::checks(), iommufd].concat()
}

/// The results of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Results {
    /// The number of checks that passed.
    pub held: u32,
    /// The names of the checks that failed, with the reasons.
    pub failed: Vec<(String, String)>,
}

/// Runs all checks on an implementation.
pub fn run<C: Core>(core: &mut C, scene: &Scene) -> Results {
    let mut results = Results::default();
    for (name, check) in all::<C>(scene.description.iommufd) {
        let mut stage = Stage { core, scene, opened: Vec::new() };
        let verdict = check(&mut stage);
        stage.close_all();
        match verdict {
            Ok(()) => results.held = results.held.saturating_add(1),
            Err(found) => results.failed.push((name.to_owned(), found)),
        }
    }
    results
}

/// An implementation without open files, and the machine under test.
pub struct Stage<'a, C> {
    core: &'a mut C,
    scene: &'a Scene,
    opened: Vec<Fd>,
}

/// A group in a container with an IOMMU.
#[derive(Clone, Copy)]
struct Ready {
    container: Fd,
    group: Fd,
}

impl<C: Core> Stage<'_, C> {
    fn kernel(&self) -> Kernel {
        self.scene.description.kernel
    }

    /// The number of a group.
    fn number(&self, which: usize) -> Result<u32, String> {
        let group = self.scene.groups.get(which).copied();
        group.ok_or_else(|| format!("the machine has no group number {which}"))
    }

    /// A device of a group.
    fn device_of(&self, which: usize) -> Result<String, String> {
        let group = self.number(which)?;
        let mut devices = self.scene.devices.iter().filter(|(of, _)| *of == group);
        let name = devices.next().map(|(_, name)| name.clone());
        name.ok_or_else(|| format!("group {group} has no device"))
    }

    #[track_caller]
    fn container(&mut self) -> Result<Fd, String> {
        let fd = done(self.core.open_container())?;
        self.opened.push(fd);
        Ok(fd)
    }

    #[track_caller]
    fn group(&mut self, which: usize) -> Result<Fd, String> {
        let number = self.number(which)?;
        let fd = done(self.core.open_group(number))?;
        self.opened.push(fd);
        Ok(fd)
    }

    #[track_caller]
    fn eventfd(&mut self) -> Result<Fd, String> {
        let fd = done(self.core.open_eventfd())?;
        self.opened.push(fd);
        Ok(fd)
    }

    #[track_caller]
    fn memory(&mut self, pages: u64) -> Result<Fd, String> {
        let fd = done(self.core.open_memory(pages.saturating_mul(PAGE)))?;
        self.opened.push(fd);
        Ok(fd)
    }

    #[track_caller]
    fn kvm(&mut self) -> Result<Fd, String> {
        let fd = done(self.core.open_kvm())?;
        self.opened.push(fd);
        Ok(fd)
    }

    #[track_caller]
    fn device(&mut self, group: Fd, name: &str) -> Result<Fd, String> {
        let fd = done(self.core.open_device(group, name))?;
        self.opened.push(fd);
        Ok(fd)
    }

    /// Opens the first group, in a container with an IOMMU.
    #[track_caller]
    fn ready(&mut self) -> Result<Ready, String> {
        let (container, group) = (self.container()?, self.group(0)?);
        done(self.core.set_container(group, container))?;
        done(self.core.set_iommu(container, 3))?;
        Ok(Ready { container, group })
    }

    #[track_caller]
    fn close(&mut self, fd: Fd) -> Verdict {
        self.opened.retain(|open| *open != fd);
        done(self.core.close(fd))
    }

    fn close_all(&mut self) {
        while let Some(fd) = self.opened.pop() {
            // A check that failed has reported its reason.
            let _ = self.core.close(fd);
        }
    }
}

/// Checks that a call succeeded.
#[track_caller]
fn done<T>(result: io::Result<T>) -> Result<T, String> {
    let place = Location::caller();
    result.map_err(|error| format!("{}:{}: {error}", place.file(), place.line()))
}

/// Checks that a call failed with this errno.
#[track_caller]
fn fails<T: Debug>(result: io::Result<T>, errno: i32) -> Verdict {
    same(result.map_err(|error| error.raw_os_error().unwrap_or(0)).err(), Some(errno))
}

/// Checks that two values are equal.
#[track_caller]
fn same<T: PartialEq + Debug>(found: T, expected: T) -> Verdict {
    let place = Location::caller();
    match found == expected {
        true => Ok(()),
        false => Err(format!("{}:{}: {found:?}, not {expected:?}", place.file(), place.line())),
    }
}
