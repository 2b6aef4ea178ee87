//! The switch's rules as a state machine: who is live, where frames go, what is kept.
//!
//! Nothing here does I/O. A port's writer takes what is due with [`Switch::next_for`]; an outside
//! gives frames with [`Switch::inbound`]; [`Switch::from_replica`] says where a replica's frame
//! may go.
//!
//! ```text
//!   kept:  | consumed (gone) | given to the live port | not yet given |
//!                            ^ popped                 ^ popped + given
//! ```

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use wire::netport::{FromSwitch, Hello, Mac, VERSION};
use wire::register::{ReplicaId, VmId};

/// Inbound frames kept for one machine, at most: bytes and frames.
pub const MAX_KEPT_BYTES: usize = 32 << 20;
pub const MAX_KEPT_FRAMES: usize = 32 << 10;
/// Machines on one switch, and connections of replicas, at most.
pub const MAX_MACHINES: usize = 64;
pub const MAX_PORTS: usize = 256;

/// A replica's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(u64);

/// Why a replica's connection is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the replica speaks version {0} of the port protocol, this switch version {VERSION}")]
    Version(u32),
    #[error("the switch has {MAX_PORTS} connections, which is the most it takes")]
    Ports,
    #[error("the switch has {MAX_MACHINES} machines, which is the most it takes")]
    Machines,
    #[error("the address {mac} belongs to machine {vm}")]
    MacTaken { mac: Mac, vm: VmId },
    #[error("{claimed} frames were reported as consumed, {given} were given")]
    Consumed { claimed: u64, given: u64 },
    #[error("a second hello")]
    SecondHello,
}

/// What a port's writer sends next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Control(FromSwitch),
    Frames(Vec<Bytes>),
    Nothing,
}

struct Port {
    vm: VmId,
    replica: ReplicaId,
    control: VecDeque<FromSwitch>,
    /// Another port became live after this one: never again.
    fenced: bool,
    /// `Machine::popped` when this port went live: its frames are counted from there.
    first: u64,
}

struct Machine {
    mac: Mac,
    /// The highest view announced; never goes back.
    view: u64,
    /// Whose that view is.
    owner: Option<ReplicaId>,
    live: Option<PortId>,
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// Frames that have left `kept` because they were consumed, in all.
    popped: u64,
    /// Of `kept`, how many the live port was given.
    given: usize,
    dropped: u64,
}

impl Machine {
    fn new(mac: Mac) -> Machine {
        Machine {
            mac,
            view: 0,
            owner: None,
            live: None,
            kept: VecDeque::new(),
            kept_bytes: 0,
            popped: 0,
            given: 0,
            dropped: 0,
        }
    }

    fn has_room(&self) -> bool {
        self.kept_bytes < MAX_KEPT_BYTES && self.kept.len() < MAX_KEPT_FRAMES
    }

    fn keep(&mut self, frame: Bytes) -> bool {
        if !self.has_room() {
            self.dropped += 1;
            return false;
        }
        self.kept_bytes += frame.len();
        self.kept.push_back(frame);
        true
    }
}

/// One machine's figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineStatus {
    pub vm: VmId,
    pub view: u64,
    pub live: Option<ReplicaId>,
    pub kept: usize,
    pub dropped: u64,
}

/// Where a replica's frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Route {
    pub outside: bool,
    /// Another machine of this switch was given it.
    pub machines: bool,
}

/// The switch.
#[derive(Default)]
pub struct Switch {
    machines: BTreeMap<VmId, Machine>,
    ports: BTreeMap<PortId, Port>,
    next_port: u64,
    /// Frames refused because their sender was not live.
    refused: u64,
}

impl Switch {
    /// A replica has connected and said hello; its welcome is the port's first control message.
    pub fn connect(&mut self, hello: &Hello) -> Result<PortId, Refusal> {
        if hello.version != VERSION {
            return Err(Refusal::Version(hello.version));
        }
        if self.ports.len() >= MAX_PORTS {
            return Err(Refusal::Ports);
        }
        let taken = self
            .machines
            .iter()
            .find(|(vm, m)| **vm != hello.vm && m.mac == hello.mac);
        if let Some((vm, _)) = taken {
            return Err(Refusal::MacTaken {
                mac: hello.mac,
                vm: *vm,
            });
        }
        if !self.machines.contains_key(&hello.vm) && self.machines.len() >= MAX_MACHINES {
            return Err(Refusal::Machines);
        }
        let machine = self
            .machines
            .entry(hello.vm)
            .or_insert_with(|| Machine::new(hello.mac));
        machine.mac = hello.mac;
        let id = PortId(self.next_port);
        self.next_port += 1;
        let welcome = FromSwitch::Welcome { version: VERSION };
        let control = VecDeque::from([welcome]);
        self.ports.insert(
            id,
            Port {
                vm: hello.vm,
                replica: hello.replica,
                control,
                fenced: false,
                first: 0,
            },
        );
        if hello.live {
            self.go_live(id, hello.view);
        }
        Ok(id)
    }

    /// A replica's connection has ended. What it was given and did not consume waits for the
    /// next live one.
    pub fn disconnect(&mut self, id: PortId) {
        let Some(port) = self.ports.remove(&id) else {
            return;
        };
        if let Some(machine) = self.machines.get_mut(&port.vm)
            && machine.live == Some(id)
        {
            machine.live = None;
            machine.given = 0;
        }
    }

    /// A replica says that it has won `view`. A view belongs to the first replica that announces
    /// it; that replica may come back on a new connection. A connection that was fenced stays so.
    pub fn go_live(&mut self, id: PortId, view: u64) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        // Every port's machine was made when it connected, and machines are never removed.
        let Some(machine) = self.machines.get_mut(&port.vm) else {
            return;
        };
        let own = view == machine.view && machine.owner == Some(port.replica);
        if port.fenced || (view <= machine.view && !own) {
            port.control
                .push_back(FromSwitch::Fenced { view: machine.view });
            return;
        }
        port.control.push_back(FromSwitch::Live { view });
        if machine.live == Some(id) {
            machine.view = view;
            return;
        }
        port.first = machine.popped;
        machine.view = view;
        machine.owner = Some(port.replica);
        machine.given = 0;
        let before = machine.live.replace(id);
        if let Some(old) = before.and_then(|old| self.ports.get_mut(&old)) {
            old.fenced = true;
            old.control.push_back(FromSwitch::Fenced { view });
        }
    }

    /// The live replica has made the first `frames` frames of its connection safe. From a port
    /// that is not live it is too late and ignored: the frames are the next one's.
    pub fn consumed(&mut self, id: PortId, frames: u64) -> Result<(), Refusal> {
        let Some(port) = self.ports.get(&id) else {
            return Ok(());
        };
        let Some(machine) = self.machines.get_mut(&port.vm) else {
            return Ok(());
        };
        if machine.live != Some(id) {
            return Ok(());
        }
        let given = machine.popped - port.first + machine.given as u64;
        if frames > given {
            return Err(Refusal::Consumed {
                claimed: frames,
                given,
            });
        }
        while machine.popped - port.first < frames {
            let frame = machine.kept.pop_front();
            // `frames` is no more than were given, and all of those are popped or kept.
            machine.kept_bytes -= frame.map_or(0, |frame| frame.len());
            machine.popped += 1;
            machine.given -= 1;
        }
        Ok(())
    }

    /// A frame from a replica. Nothing goes anywhere unless the replica is live.
    pub fn from_replica(&mut self, id: PortId, frame: &Bytes) -> Route {
        let live = self.ports.get(&id).map(|port| port.vm);
        let live = live.filter(|vm| self.machines.get(vm).is_some_and(|m| m.live == Some(id)));
        let Some(sender) = live else {
            self.refused += 1;
            return Route::default();
        };
        let Some(to) = destination(frame) else {
            return Route::default();
        };
        let mut route = Route {
            outside: true,
            machines: false,
        };
        for (vm, machine) in &mut self.machines {
            if *vm != sender && (is_group(to) || machine.mac == to) {
                route.machines |= machine.keep(frame.clone());
                route.outside &= is_group(to);
            }
        }
        route
    }

    /// A frame from the outside. Returns whether some machine took it.
    pub fn inbound(&mut self, frame: &Bytes) -> bool {
        let Some(to) = destination(frame) else {
            return false;
        };
        let mut taken = false;
        for machine in self.machines.values_mut() {
            if is_group(to) || machine.mac == to {
                taken |= machine.keep(frame.clone());
            }
        }
        taken
    }

    /// Whether an inbound frame would reach a live replica now: some machine is live, and every
    /// live one has room.
    pub fn ready(&self) -> bool {
        let mut live = self
            .machines
            .values()
            .filter(|machine| machine.live.is_some())
            .peekable();
        live.peek().is_some() && live.all(Machine::has_room)
    }

    /// Whether an inbound frame would be kept, live or not.
    pub fn has_room(&self) -> bool {
        self.machines.values().all(Machine::has_room)
    }

    /// What port `id` sends next; frames are marked as given, up to `max` bytes at a time.
    /// `None`: the port is gone.
    pub fn next_for(&mut self, id: PortId, max: usize) -> Option<Next> {
        let port = self.ports.get_mut(&id)?;
        if let Some(control) = port.control.pop_front() {
            return Some(Next::Control(control));
        }
        let Some(machine) = self
            .machines
            .get_mut(&port.vm)
            .filter(|m| m.live == Some(id))
        else {
            return Some(Next::Nothing);
        };
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while let Some(frame) = machine.kept.get(machine.given) {
            if bytes + frame.len() > max && !frames.is_empty() {
                break;
            }
            bytes += frame.len();
            frames.push(frame.clone());
            machine.given += 1;
        }
        Some(if frames.is_empty() {
            Next::Nothing
        } else {
            Next::Frames(frames)
        })
    }

    pub fn status(&self) -> Vec<MachineStatus> {
        let live = |machine: &Machine| {
            machine
                .live
                .and_then(|id| self.ports.get(&id))
                .map(|port| port.replica)
        };
        let machines = self.machines.iter().map(|(vm, machine)| MachineStatus {
            vm: *vm,
            view: machine.view,
            live: live(machine),
            kept: machine.kept.len(),
            dropped: machine.dropped,
        });
        machines.collect()
    }

    /// Frames refused because their sender was not live.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

fn destination(frame: &Bytes) -> Option<Mac> {
    frame.first_chunk::<6>().copied().map(Mac)
}

/// Broadcast or multicast.
fn is_group(mac: Mac) -> bool {
    mac.0[0] & 1 != 0
}

#[cfg(test)]
mod tests;
