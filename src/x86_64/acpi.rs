//! ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1): no PM timer, no SCI, no fixed events.
//!
//! ```text
//! RSDP → XSDT → FADT → DSDT   S5, COM1, one node for each virtio device,
//!             → MADT          pvpanic; power button and VM generation id behind a generic event device
//! ```

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use husk_devices::platform::{POWER_LEN, PVPANIC_LEN, PowerControl};
use husk_devices::serial::UART_LEN;
use husk_devices::virtio::mmio::MMIO_WINDOW;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;
use crate::access::AccessError;

const OEM: [u8; 6] = *b"HUSK  ";
const TABLE: [u8; 8] = *b"HUSKVM  ";
const REVISION: u32 = 1;

/// A virtio-mmio device as the guest finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Address of its register window.
    pub base: u32,
    /// Its interrupt, an input of the I/O APIC.
    pub gsi: u32,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They do not fit into the space kept for them.
    #[error("ACPI tables take {0} bytes, more than the {max} kept for them", max = layout::ACPI_LEN)]
    TooLarge(usize),
    /// The space kept for them is not guest memory.
    #[error("ACPI tables: {0}")]
    Memory(#[from] AccessError),
}

/// Writes all tables and returns the address of the RSDP.
///
/// # Errors
/// When they do not fit, or there is no guest memory.
pub fn write(
    memory: &GuestMemoryMmap,
    cpus: u8,
    slots: &[VirtioSlot],
) -> Result<GuestAddress, AcpiError> {
    // The RSDP comes first: Linux looks for it from here when nobody tells where it is.
    let mut image = vec![0; Rsdp::len().next_multiple_of(16)];
    let mut place = |table: &dyn Aml| {
        let at = layout::ACPI + image.len() as u64;
        table.to_aml_bytes(&mut image as &mut dyn AmlSink);
        image.resize(image.len().next_multiple_of(16), 0);
        at
    };
    let dsdt = dsdt(slots);
    let dsdt = place(&TableBytes(dsdt.as_slice()));
    let fadt = place(&fadt(dsdt));
    let madt = place(&madt(cpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    image.splice(..rsdp.len(), rsdp);
    if image.len() as u64 > layout::ACPI_LEN {
        return Err(AcpiError::TooLarge(image.len()));
    }
    memory.write_slice(&image, GuestAddress(layout::ACPI)).map_err(AccessError::from)?;
    Ok(GuestAddress(layout::ACPI))
}

struct TableBytes<'a>(&'a [u8]);

impl Aml for TableBytes<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

fn power_register(offset: u16) -> GAS {
    let port = u64::from(layout::POWER + offset);
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

fn fadt(dsdt: u64) -> impl Aml {
    /// "Boot architecture flags" (ACPI 6.5 table 5.11): no VGA, no CMOS clock; the clear bits say
    /// that there are no legacy devices and no 8042 to be probed.
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // No fixed power and sleep buttons: the power button is a control method device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = power_register(PowerControl::RESET_OFFSET);
    fadt.reset_value = PowerControl::RESET_VALUE;
    fadt.sleep_control_reg = power_register(PowerControl::SLEEP_CONTROL_OFFSET);
    fadt.sleep_status_reg = power_register(PowerControl::SLEEP_STATUS_OFFSET);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut madt =
        MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt
}

/// An edge-triggered interrupt: what an irqfd without a resample descriptor raises.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn dsdt(slots: &[VirtioSlot]) -> Sdt {
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let sink: &mut dyn AmlSink = &mut sdt;

    Name::new("_S5_".into(), &Package::new(vec![&PowerControl::S5, &0u8, &0u8, &0u8]))
        .to_aml_bytes(sink);

    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(layout::COM1, layout::COM1, 1, UART_LEN as u8),
                    &edge(layout::COM1_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);

    Device::new(
        "_SB_.PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            // Present, enabled, shown, functioning (ACPI 6.5 §6.3.7).
            &Name::new("_STA".into(), &0xfu8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(
                    layout::PVPANIC,
                    layout::PVPANIC,
                    1,
                    PVPANIC_LEN as u8,
                )]),
            ),
        ],
    )
    .to_aml_bytes(sink);

    // Claims the ports so that no driver takes them for free.
    Device::new(
        "_SB_.PWRR".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(
                    layout::POWER,
                    layout::POWER,
                    1,
                    POWER_LEN as u8,
                )]),
            ),
        ],
    )
    .to_aml_bytes(sink);

    // The generation id: Microsoft, "Virtual Machine Generation ID", "ACPI". The second compatible id is
    // Hyper-V's newer one, as long as ACPI allows. Both halves of the address are in the package.
    Device::new(
        "_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"HUSK0001"),
            &Name::new("_CID".into(), &Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"])),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new(
                "ADDR".into(),
                &Package::new(vec![
                    &(layout::GENERATION_ID as u32),
                    &((layout::GENERATION_ID >> 32) as u32),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);

    // The power button, and the generic event device whose interrupts press it and tell of a new
    // generation id (ACPI 6.5 §5.6.9).
    const PRESSED: u8 = 0x80;
    const CHANGED: u8 = 0x80;
    Device::new("_SB_.PWRB".into(), vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))])
        .to_aml_bytes(sink);
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &edge(layout::POWER_BUTTON_GSI),
                    &edge(layout::GENERATION_GSI),
                ]),
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &If::new(
                        &Equal::new(&Arg(0), &layout::POWER_BUTTON_GSI),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &PRESSED)],
                    ),
                    &If::new(
                        &Equal::new(&Arg(0), &layout::GENERATION_GSI),
                        vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &CHANGED)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(sink);

    for (n, slot) in slots.iter().enumerate() {
        Device::new(
            format!("_SB_.V{n:03X}").as_str().into(),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &n),
                // DMA is coherent; without this Linux bounces it.
                &Name::new("_CCA".into(), &1u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, slot.base, MMIO_WINDOW as u32),
                        &edge(slot.gsi),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
    sdt.update_checksum();
    sdt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(cpus: u8, devices: usize) -> Vec<u8> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let slots: Vec<_> = (0..devices as u32)
            .map(|n| VirtioSlot { base: 0xd000_0000 + n * 0x1000, gsi: 6 + n })
            .collect();
        let at = write(&memory, cpus, &slots).unwrap();
        assert_eq!(at.0, layout::ACPI);
        let mut image = vec![0; layout::ACPI_LEN as usize];
        memory.read_slice(&mut image, at).unwrap();
        image
    }

    fn u64_at(image: &[u8], at: usize) -> usize {
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap()) as usize
    }

    fn table(image: &[u8], address: usize) -> Vec<u8> {
        let at = address - layout::ACPI as usize;
        let len = u32::from_le_bytes(image[at + 4..at + 8].try_into().unwrap()) as usize;
        image[at..at + len].to_vec()
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_its_checksum_holds() {
        let image = tables(64, layout::VIRTIO_MAX);
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
        let xsdt = table(&image, u64_at(&image, 24));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(&image, u64_at(&xsdt, 36));
        assert_eq!((&fadt[..4], sum(&fadt), fadt.len()), (&b"FACP"[..], 0, 276));
        let madt = table(&image, u64_at(&xsdt, 44));
        assert_eq!((&madt[..4], sum(&madt), madt.len()), (&b"APIC"[..], 0, 44 + 12 + 64 * 8));
        let dsdt = table(&image, u64_at(&fadt, 140));
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
        assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), layout::VIRTIO_MAX);
    }

    #[test]
    fn the_generation_id_has_an_address_in_a_reserved_page_of_its_own() {
        let image = tables(1, 0);
        let place = |what: &[u8]| image.windows(what.len()).position(|w| w == what);
        assert!(place(b"VM_Gen_Counter").is_some() && place(b"VMGENCTR").is_some());
        // Package of two elements: a doubleword and a zero.
        let mut address = b"ADDR\x12\x08\x02\x0c".to_vec();
        address.extend((layout::GENERATION_ID as u32).to_le_bytes());
        address.push(0);
        assert!(place(&address).is_some());
        const {
            assert!(layout::GENERATION_ID >= layout::LOW_RAM_END);
            assert!(layout::GENERATION_ID.is_multiple_of(8));
            assert!((layout::GENERATION_ID | 0xfff) < layout::ACPI);
        }
    }

    #[test]
    fn the_fadt_names_the_registers_that_end_and_reset_the_machine() {
        let image = tables(1, 0);
        let xsdt = table(&image, u64_at(&image, 24));
        let fadt = table(&image, u64_at(&xsdt, 36));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
        assert_ne!(flags & 1 << 10, 0, "reset register");
        assert_eq!(u64_at(&fadt, 120), 0x602);
        assert_eq!(fadt[128], 1);
        assert_eq!(u64_at(&fadt, 248), 0x600);
        assert_eq!(u64_at(&fadt, 260), 0x601);
    }
}
