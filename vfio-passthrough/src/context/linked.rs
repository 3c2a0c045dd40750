//! The link between the hypervisor and a file of VFIO.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::error::Error;
use crate::host::GroupLink;

/// The hypervisor knows the file of a group or of a device until this value is dropped.
pub(super) struct Linked {
    link: Arc<dyn GroupLink>,
    file: Arc<File>,
}

impl Linked {
    /// Reports the file to the hypervisor. `what` names it in an error.
    pub fn new(what: &str, link: Arc<dyn GroupLink>, file: Arc<File>) -> Result<Self, Error> {
        let linked = link.add(file.as_fd());
        linked.map_err(|source| Error::Link { what: what.to_owned(), source })?;
        Ok(Self { link, file })
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        if let Err(error) = self.link.remove(self.file.as_fd()) {
            log::error!(
                "KVM_DEV_VFIO_FILE_DEL: {error}; the VM holds the device until it is destroyed"
            );
        }
    }
}
