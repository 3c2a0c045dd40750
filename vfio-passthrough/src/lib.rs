//! VFIO PCI passthrough.
