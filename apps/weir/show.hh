// SPDX-License-Identifier: BSD-3-Clause
// show: what people see of an instance's JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/pipeline/registry.hh"

std::string show_stats(const nlohmann::json& stats);
// What changed between two answers, a second or so apart, as rates.
std::string show_rates(const nlohmann::json& before, const nlohmann::json& now);
std::string show_groups(const nlohmann::json& devmap);
std::string show_egress(const nlohmann::json& egress);
std::string show_flows(const nlohmann::json& flows);
extern const std::string no_flow_cache;  // what stands for one
std::string show_samples(const nlohmann::json& samples);
std::string show_devmap(const nlohmann::json& devmap);
std::string show_plugins(const weir::Registry& registry);
// The keys, drop reasons and counters of one plugin or egress program; empty: there is none of that name.
std::string show_plugin(const weir::Registry& registry, const std::string& name);
nlohmann::json plugins_json(const weir::Registry& registry);
