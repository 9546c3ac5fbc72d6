// SPDX-License-Identifier: BSD-3-Clause
// control_socket: one question and one answer, both a JSON object, over a Unix socket of the instance.
//   → {"ask": "stats"}    ← {"ok": {…}}  or  {"error": "what and why"}
// Each is one packet of a SOCK_SEQPACKET connection, so that neither side ever waits for the rest of a message.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "core/base/fd.hh"
#include "core/base/result.hh"

namespace weir {

class ControlSocket {
 public:
  using Answer = std::function<Result<nlohmann::json>(const nlohmann::json& question)>;

  static Result<ControlSocket> listen(const std::string& instance);
  ControlSocket(ControlSocket&&) = default;
  ~ControlSocket();

  [[nodiscard]] int descriptor() const noexcept { return listener_.get(); }  // readable: someone asks
  // Serves whoever waits. One that says nothing, or garbage, gets an error and cannot hold the instance up.
  void serve(const Answer& answer) const;

 private:
  ControlSocket(std::string path, Fd listener) : path_(std::move(path)), listener_(std::move(listener)) {}
  std::string path_;
  Fd listener_;
};

// Asks a running instance.
Result<nlohmann::json> ask(const std::string& instance, const nlohmann::json& question);
// The only one that runs, when `name` is empty.
Result<std::string> find_instance(const std::string& name);

}  // namespace weir
