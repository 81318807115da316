//! Everything that makes the machine an x86-64 PC: its address map, CPUID, registers and tables.
//!
//! Called by the VM floor while it puts a machine together; knows KVM structures and guest memory,
//! never a device's inside.

pub mod acpi;
pub mod cpuid;
pub mod entry;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod regs;
pub mod reset;
