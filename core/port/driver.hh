// SPDX-License-Identifier: BSD-3-Clause
// driver: what a kind of port is. That of netdevs under XDP is the runtime's own; each other one is a constant, linked in or of a module.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/base/mapping.hh"
#include "core/config/node.hh"
#include "core/config/schema.hh"
#include "core/port/port.hh"

namespace weir {

// What a port is opened with.
struct PortContext {
  PortSlot slot;               // for Frame::port
  std::string name;            // of the port, for messages
  FramePool& pool;             // where the memory of its frames comes from
  u32 fill;                    // frames that each of its queues may hold for receiving
  bool files_only;             // no port of the instance is one that frames are lost at while a worker waits
  bool receives;               // it has a pipeline: what comes in goes somewhere
  const ConfigNode* settings;  // the table [DRIVER] of the file; null: the driver has none
};

struct PortDriver {
  const char* name = nullptr;
  const char* says = nullptr;  // one sentence for people
  Schema keys = {};            // of a [[port]], beside name, driver, pipeline and egress
  Schema settings = {};        // of the table [NAME], for all ports of the driver; every key may be left out
  // What is wrong with the keys together; empty: nothing. Touches nothing outside. Null: nothing ever is.
  std::string (*refuse)(const ConfigNode& keys) = nullptr;
  // Once for an instance with ports of it, in front of all else that takes memory: with the keys of these ports, and the bytes of the
  // instance's frames. Where these are to be, so that its devices reach them; empty: anywhere. Null: there is nothing to begin with.
  Result<Mapping> (*begin)(const std::vector<const ConfigNode*>& ports, const ConfigNode* settings, std::size_t frame_bytes) = nullptr;
  // How many queues it will receive by: none, where nothing ever comes in. Touches nothing outside.
  u32 (*queues)(const ConfigNode& keys) = nullptr;
  // Makes ready to receive. What it takes hold of it gives back with the port.
  Result<std::unique_ptr<Port>> (*open)(const ConfigNode& keys, const PortContext& context) = nullptr;
};

}  // namespace weir
