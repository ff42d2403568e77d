// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio device that uses rust-vmm's `virtio-queue` unchanged, and the driver's side of its ring.

use gmem::vm_memory::GuestMemoryGmem;
use std::io::{
    Read,
    Write, //
};
use virtio_queue::{
    desc::{
        split::Descriptor,
        RawDescriptor, //
    },
    Queue,
    QueueOwnedT,
    QueueT,
    Reader,
    Writer, //
};
use vm_memory::{
    Bytes,
    GuestAddress, //
};

const PAGE: u64 = 0x1000;
const ENTRIES: u16 = 4;
/// `VRING_DESC_F_NEXT` and `VRING_DESC_F_WRITE`.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Pages, from the address of the ring on.
const TABLE: u64 = 0;
const AVAILABLE: u64 = 1;
const USED: u64 = 2;
const REQUEST: u64 = 3;
const ANSWER: u64 = 4;

/// The device: it answers a request with its complement.
pub struct Device {
    queue: Queue,
    ring: u64,
}

impl Device {
    /// A device with its ring at a guest physical address, where `done` requests are answered.
    pub fn new(ring: u64, done: u16) -> Self {
        let mut queue = Queue::new(ENTRIES).unwrap();
        let low = |page: u64| Some(u32::try_from(ring + page * PAGE).unwrap());
        queue.set_size(ENTRIES);
        queue.set_desc_table_address(low(TABLE), Some(0));
        queue.set_avail_ring_address(low(AVAILABLE), Some(0));
        queue.set_used_ring_address(low(USED), Some(0));
        queue.set_next_avail(done);
        queue.set_next_used(done);
        queue.set_ready(true);
        Self { queue, ring }
    }

    /// Whether all of the ring can be used.
    pub fn is_valid(&self, memory: &GuestMemoryGmem) -> bool {
        self.queue.is_valid(memory)
    }

    /// Serves what is in the ring, and returns how many requests that were.
    pub fn run(&mut self, memory: &GuestMemoryGmem) -> Result<usize, String> {
        let text = |error: &dyn std::fmt::Debug| format!("{error:?}");
        let mut served = 0;
        loop {
            let next = self
                .queue
                .iter(memory)
                .map_err(|error| text(&error))?
                .next();
            let Some(chain) = next else {
                return Ok(served);
            };
            let head = chain.head_index();
            let mut reader = Reader::new(memory, chain.clone()).map_err(|error| text(&error))?;
            let mut writer = Writer::new(memory, chain).map_err(|error| text(&error))?;
            let mut request = Vec::new();
            reader
                .read_to_end(&mut request)
                .map_err(|error| text(&error))?;
            // What cannot be read of a chain ends it.
            if request.is_empty() {
                return Err("no descriptors".into());
            }
            let answer: Vec<u8> = request.iter().map(|byte| !byte).collect();
            writer.write_all(&answer).map_err(|error| text(&error))?;
            // They hold the buffers.
            drop((reader, writer));
            self.queue
                .add_used(memory, head, answer.len() as u32)
                .map_err(|error| text(&error))?;
            served += 1;
        }
    }

    /// The driver's side: puts request `number` (from 0 on) into the ring.
    pub fn ask(&self, memory: &GuestMemoryGmem, number: u16, request: &[u8]) {
        let at = |page: u64, offset: u64| GuestAddress(self.ring + page * PAGE + offset);
        let length = request.len() as u32;
        let chain = [
            Descriptor::new(at(REQUEST, 0).0, length, NEXT, 1),
            Descriptor::new(at(ANSWER, 0).0, length, WRITE, 0),
        ];
        for (descriptor, index) in chain.into_iter().zip(0..) {
            let raw = RawDescriptor::from(descriptor);
            memory.write_obj(raw, at(TABLE, index * 16)).unwrap();
        }
        memory.write_slice(request, at(REQUEST, 0)).unwrap();
        let entry = u64::from(number % ENTRIES);
        memory
            .write_obj(0u16, at(AVAILABLE, 4 + entry * 2))
            .unwrap();
        memory.write_obj(number + 1, at(AVAILABLE, 2)).unwrap();
    }

    /// The driver's side: how many requests have been answered, and the last answer.
    pub fn answered(&self, memory: &GuestMemoryGmem, length: usize) -> (u16, Vec<u8>) {
        let at = |page: u64, offset: u64| GuestAddress(self.ring + page * PAGE + offset);
        let mut answer = vec![0; length];
        memory.read_slice(&mut answer, at(ANSWER, 0)).unwrap();
        (memory.read_obj(at(USED, 2)).unwrap(), answer)
    }
}
