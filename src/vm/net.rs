//! Network interfaces: the network each is on opened, and a card put before it.

use husk_devices::rate::Bucket;
use husk_devices::virtio::net::link::Link;
use husk_devices::virtio::net::passt::{self, Forward, Passt};
use husk_devices::virtio::net::tap::{Tap, TapError};
use husk_devices::virtio::net::vhost::Vhost;
use husk_devices::virtio::net::{Card, Direction, Limits, Net};

use super::error::VmError;
use super::opening::Opening;
use crate::config::{
    NetConfig, NetHost, Publish, RateLimiter, TokenBucket, Vhost as VhostChoice, parse_mac,
};
use crate::runtime;

/// Pairs of queues, unless the user says how many: more help only few guests.
const QUEUES: u16 = 4;

/// Opens the card of `net`, for a guest with `cpus` vCPUs, and adds it. It is served by the VM's worker, and by
/// more of its own when it has several queues.
///
/// # Errors
/// The network that cannot be had.
pub(super) fn open(net: &NetConfig, cpus: u32, opening: &mut Opening) -> Result<(), VmError> {
    let card = card(net, cpus, opening)?;
    opening.add(&net.id, card);
    Ok(())
}

fn card(net: &NetConfig, cpus: u32, opening: &mut Opening) -> Result<Net, VmError> {
    let id = || net.id.clone();
    let mac = net.mac.as_deref().map(parse_mac).transpose()?;
    let worker = opening.worker.handle();
    let mut card = Card { mac, mtu: net.mtu, limits: limits(net) };
    let taps = match net.host()? {
        NetHost::Tap(name) => {
            let taps = open_queues(name, net.queues, cpus);
            let taps = taps.map_err(|source| VmError::Tap { id: id(), source })?;
            card.mtu =
                card.mtu.or_else(|| taps.first().and_then(Tap::mtu).filter(|mtu| *mtu >= 68));
            taps
        }
        NetHost::Fd(fd) => {
            vec![Tap::inherited(fd).map_err(|source| VmError::Tap { id: id(), source })?]
        }
        NetHost::User => {
            let mtu = *card.mtu.get_or_insert(passt::MTU);
            let forwards: Vec<_> = net.publish.iter().map(forward).collect();
            let passt = Passt::start(mtu, &forwards);
            let passt = passt.map_err(|source| VmError::Passt { id: id(), source })?;
            return Ok(Net::new(&net.id, Box::new(passt), card, worker));
        }
        NetHost::Link(name) => {
            let link = Link::open(&runtime::directory(), name);
            let link = link.map_err(|source| VmError::Link { id: id(), source })?;
            card.mac.get_or_insert_with(|| link.mac_of(&net.id));
            return Ok(Net::new(&net.id, Box::new(link), card, worker));
        }
    };
    let taps = match vhosts(net, taps.len())? {
        Some(vhosts) => {
            let taps = taps.into_iter().zip(vhosts).collect();
            return Ok(Net::over_vhost(&net.id, taps, card, worker));
        }
        None => taps,
    };
    let mut handles = vec![worker];
    for n in 1..taps.len() {
        handles.push(opening.own_worker(format!("husk-{}.{n}", net.id))?);
    }
    Ok(Net::over_tap(&net.id, taps, card, handles))
}

/// As many queues as the user wants, or as there are vCPUs to use them, if the TAP has them.
fn open_queues(name: &str, wanted: Option<u16>, cpus: u32) -> Result<Vec<Tap>, TapError> {
    if let Some(wanted) = wanted {
        return Tap::open_queues(name, wanted);
    }
    match Tap::open_queues(name, usual_queues(cpus)) {
        Err(TapError::Queues { .. }) => Tap::open(name).map(|tap| vec![tap]),
        opened => opened,
    }
}

/// The queues of a TAP for so many vCPUs.
fn usual_queues(cpus: u32) -> u16 {
    u16::try_from(cpus).unwrap_or(QUEUES).clamp(1, QUEUES)
}

/// One vhost-net for each of `count` queues; none where the user does not want it, or has left it open
/// and it is not to be had.
fn vhosts(net: &NetConfig, count: usize) -> Result<Option<Vec<Vhost>>, VmError> {
    let wanted = net.vhost.unwrap_or_default();
    if wanted == VhostChoice::Off || net.is_limited() {
        return Ok(None);
    }
    match (0..count).map(|_| Vhost::open()).collect() {
        Ok(vhosts) => Ok(Some(vhosts)),
        Err(source) if wanted == VhostChoice::On => {
            Err(VmError::Vhost { id: net.id.clone(), source })
        }
        Err(why) => {
            log::info!("network interface {}: without vhost-net: {why}", net.id);
            Ok(None)
        }
    }
}

fn forward(publish: &Publish) -> Forward {
    let Publish { address, host, guest, udp } = *publish;
    Forward { address, host, guest, udp }
}

fn limits(net: &NetConfig) -> Limits {
    // Both fit, as VmConfig::validate has seen.
    let bucket = |bucket: TokenBucket| {
        let rate = u128::from(bucket.size) * 1000 / u128::from(bucket.refill_time.max(1));
        Bucket::new(bucket.size, u64::try_from(rate).unwrap_or(u64::MAX))
    };
    let direction = |limiter: Option<RateLimiter>| {
        let RateLimiter { bandwidth, ops } = limiter.unwrap_or_default();
        Direction::new(bandwidth.map(bucket), ops.map(bucket))
    };
    Limits { rx: direction(net.rx_rate_limiter), tx: direction(net.tx_rate_limiter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_has_a_pair_of_queues_for_each_vcpu_up_to_four() {
        let found: Vec<u16> = [1, 2, 3, 4, 5, 64, u32::MAX].map(usual_queues).to_vec();
        assert_eq!(found, [1, 2, 3, 4, 4, 4, 4]);
    }
}
