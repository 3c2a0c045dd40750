//! A library for `LD_PRELOAD`: it answers a program's calls of `/dev/vfio` and `/dev/iommu` by
//! `vfio-model`, in the program's process. See README.md.
//!
//! The program `on-model` describes a machine in a folder, and sets `VFIO_PRELOAD` to it.
//! The folder also has the machine's sysfs and device nodes: paths below `/sys` and `/dev` that
//! have to do with PCI or VFIO lead there (`paths`).
//!
//! A file of VFIO is a memfd, so that `poll`, `dup`, `fcntl` and `SCM_RIGHTS` work as with any
//! other file. `host` knows it by its inode.

mod argument;
mod c;
mod eventfd;
mod functions;
mod host;
mod kvm;
mod machine;
mod memory;
mod open_files;
mod paths;
