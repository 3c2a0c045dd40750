//! Errors of interrupts.

use std::io;

use super::IrqIndex;
use super::plan::{Had, Step};
use crate::backend::FewerVectors;

/// An error of interrupts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VMM could not route an interrupt to the guest, or could not stop it.
    #[error("cannot route {index} to the guest: {source}{}", files_hint(source))]
    Route {
        /// The interrupt index.
        index: IrqIndex,
        /// The error of the VMM: the hypervisor's errno, or `StorageFull` if GSIs ran out.
        source: io::Error,
    },
    /// No eventfd could be created.
    #[error("cannot make an eventfd for {index} vector {vector}: {source}{}", files_hint(source))]
    Eventfd {
        /// The interrupt index.
        index: IrqIndex,
        /// The vector.
        vector: u16,
        /// The errno of `eventfd`: `EMFILE` if the limit on open files is too low.
        source: io::Error,
    },
    /// `VFIO_DEVICE_SET_IRQS` failed.
    #[error("VFIO_DEVICE_SET_IRQS ({index}, {what}): {source}{}", vectors_hint(source))]
    SetIrqs {
        /// The interrupt index.
        index: IrqIndex,
        /// The requested change.
        what: String,
        /// The errno of the ioctl, or `StorageFull` if the host has too few vectors.
        source: io::Error,
    },
}

impl Error {
    /// The number of vectors of the failed `step` for which the host has enough, as far as the
    /// error shows it. `None` if the step did not fail for lack of vectors, GSIs or files.
    pub(crate) fn had(&self, step: &Step) -> Option<Had> {
        let had = match (self, step) {
            (Self::Route { .. }, Step::Route(changes)) => {
                let starts = changes.iter().any(|(_, message)| message.is_some());
                starts.then_some(Had::Unknown)
            }
            // ENOSPC is no errno of eventfd2.
            (Self::Eventfd { vector, source, .. }, Step::Bind(vectors)) => {
                let at = vectors.iter().position(|bound| bound == vector);
                at.filter(|_| is_out_of_files(source)).map(Had::Known)
            }
            (Self::SetIrqs { source, .. }, Step::Bind(_) | Step::EnableEmpty) => {
                Some(number_of(source))
            }
            _ => None,
        };
        had.filter(|_| is_shortage(self.source_error()))
    }

    fn source_error(&self) -> &io::Error {
        match self {
            Self::Route { source, .. }
            | Self::Eventfd { source, .. }
            | Self::SetIrqs { source, .. } => source,
        }
    }

    pub(crate) fn kind(&self) -> io::ErrorKind {
        self.source_error().kind()
    }
}

/// Whether the host has too few vectors, GSIs or files.
fn is_shortage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull || is_out_of_files(error)
}

fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The number of vectors that the kernel says the host has.
fn number_of(error: &io::Error) -> Had {
    let fewer = error.get_ref().and_then(|inner| inner.downcast_ref());
    let had = fewer.and_then(|FewerVectors(had)| usize::try_from(*had).ok());
    had.map_or(Had::Unknown, Had::Known)
}

fn files_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            "; the limit on open files is too low: 'ulimit -n', or LimitNOFILE= in a systemd unit"
        }
        Some(libc::ENFILE) => "; the host has too many open files: raise /proc/sys/fs/file-max",
        _ => "",
    }
}

fn vectors_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            "; the host's CPUs have no more interrupt vectors: assign fewer devices, or enable \
             x2APIC and interrupt remapping in the firmware"
        }
        _ => "",
    }
}

/// Keeps the error, and the kind of its errno.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}
