//! Named checks of the rules, for any implementation.

mod devices;
mod dma;
mod files;

use std::fmt::Debug;
use std::io;
use std::panic::Location;

use serde::Serialize;
use vfio_model::{Fd, Kernel};

use crate::{Core, Scene};

/// Why a check fails.
pub type Verdict = Result<(), String>;

/// A check, by its name.
pub type Check<C> = (&'static str, fn(&mut Stage<'_, C>) -> Verdict);

/// All checks.
#[must_use]
pub fn all<C: Core>() -> Vec<Check<C>> {
    [files::checks(), dma::checks(), devices::checks()].concat()
}

/// What came of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Results {
    /// How many held.
    pub held: u32,
    /// The others: the name, and what was found.
    pub failed: Vec<(String, String)>,
}

/// Runs all checks on an implementation.
pub fn run<C: Core>(core: &mut C, scene: &Scene) -> Results {
    let mut results = Results::default();
    for (name, check) in all::<C>() {
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

/// An implementation with nothing open, and what there is to open.
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

    /// The first group, ready for its devices to be opened and for maps.
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
            // A check that fails has said so already.
            let _ = self.core.close(fd);
        }
    }
}

/// It must have succeeded.
#[track_caller]
fn done<T>(result: io::Result<T>) -> Result<T, String> {
    let place = Location::caller();
    result.map_err(|error| format!("{}:{}: {error}", place.file(), place.line()))
}

/// It must have failed, and so.
#[track_caller]
fn fails<T: Debug>(result: io::Result<T>, errno: i32) -> Verdict {
    same(result.map_err(|error| error.raw_os_error().unwrap_or(0)).err(), Some(errno))
}

/// They must be equal.
#[track_caller]
fn same<T: PartialEq + Debug>(found: T, expected: T) -> Verdict {
    let place = Location::caller();
    match found == expected {
        true => Ok(()),
        false => Err(format!("{}:{}: {found:?}, not {expected:?}", place.file(), place.line())),
    }
}
