//! The limits of a VMM whose guest runs. It can open no file then, so that the files stay open.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vfio_passthrough::dma::{Error as DmaError, LockedMemoryLimit};

use super::files::{files, files_needed};
use crate::error::Error;

/// What a device that comes needs of the limits of this process. By default nothing is checked.
#[derive(Default)]
pub(crate) struct RunningLimits {
    limits: Option<File>,
    locked: LockedMemoryLimit,
    cpus: u8,
}

impl RunningLimits {
    /// Opens the files with the limits of a VMM with `cpus` vCPUs.
    pub(crate) fn open(cpus: u8) -> Self {
        let limits = File::open("/proc/self/limits").ok();
        Self { limits, locked: LockedMemoryLimit::open(), cpus }
    }

    /// Checks the number of files that the VMM opens. `vectors` has the number of each device.
    pub(crate) fn check_files(&self, vectors: impl IntoIterator<Item = u64>) -> Result<(), Error> {
        let mut buffer = [0; 4096];
        let read = self.limits.as_ref().and_then(|file| file.read_at(&mut buffer, 0).ok());
        let text = String::from_utf8_lossy(buffer.get(..read.unwrap_or(0)).unwrap_or_default());
        Ok(files(&text, files_needed(self.cpus, vectors))?)
    }

    /// Checks that `bytes` can be locked.
    pub(crate) fn check_locked(&self, bytes: u64) -> Result<(), Error> {
        self.locked.check(bytes).map_err(|source| match source {
            DmaError::LockedMemory { needed, used, .. } => {
                let bytes = needed.saturating_add(used).saturating_mul(1024);
                Error::LockedMemory { source, pid: std::process::id(), bytes }
            }
            other => other.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn reads_the_limit_on_files_again_for_each_device() {
        let text = |hard| format!("Max open files            64                {hard}     files\n");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text(4096).as_bytes()).unwrap();
        let limits =
            RunningLimits { limits: Some(file.try_clone().unwrap()), ..RunningLimits::open(4) };
        limits.check_files([2049, 65]).unwrap();
        file.write_at(text(1024).as_bytes(), 0).unwrap();
        let error = limits.check_files([2049, 65]).unwrap_err().to_string();
        assert!(error.contains("the VMM opens up to 2166 files"), "{error}");
        assert!(error.contains("'ulimit -n 2166'"), "{error}");
        RunningLimits::default().check_files([1 << 30]).unwrap();
    }

    #[test]
    fn the_limit_on_locked_memory_has_a_remedy_for_a_running_vmm() {
        let source = DmaError::LockedMemory { needed: 1 << 20, limit: 64, used: 0 };
        let error = Error::LockedMemory { source, pid: 7, bytes: 1 << 30 }.to_string();
        assert!(error.contains("the limit of this process is 64 KiB"), "{error}");
        assert!(error.contains("'prlimit --pid 7 --memlock=1073741824'"), "{error}");
    }
}
