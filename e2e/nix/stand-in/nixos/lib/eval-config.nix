{ system, modules }:
let
  lib = import ../../lib;
  pkgs = import ../../packages.nix { inherit lib system; };
  machine = lib.nixos { inherit modules pkgs; };
in
if machine.failed == [ ] then
  { config.system.build.toplevel = pkgs.writeText "nixos-system" machine.defined; }
else
  throw (builtins.head machine.failed)
