//! Guest resources handed out as leases, and the guest's physical layout.
