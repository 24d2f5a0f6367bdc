{
  description = "Run NixOS machines the way you run containers: a Kubernetes controller that lands flakes over SSH";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      each = f: lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: f system nixpkgs.legacyPackages.${system});
    in
    {
      # The controller, and its image: `nix build .#image && ./result | podman load`
      packages = each (
        system: pkgs: {
          default = pkgs.callPackage ./nix/package.nix { };
          image = pkgs.callPackage ./nix/image.nix { nixos-host-controller = self.packages.${system}.default; };
        }
      );

      overlays.default = final: _: { nixos-host-controller = final.callPackage ./nix/package.nix { }; };

      nixosModules = {
        # A machine that is managed
        host = ./nix/modules/host.nix;
        # The controller as a service, outside a cluster
        controller =
          { lib, pkgs, ... }:
          {
            imports = [ ./nix/modules/controller.nix ];
            services.nixos-host-controller.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
          };
      };

      devShells = each (
        system: pkgs: {
          default = pkgs.mkShell {
            inputsFrom = [ self.packages.${system}.default ];
            packages = [
              pkgs.clippy
              pkgs.rustfmt
              pkgs.rust-analyzer
              pkgs.shellcheck
              pkgs.kubectl
              pkgs.nix
              pkgs.git
              pkgs.openssh
            ];
          };
        }
      );

      # `nix fmt`
      formatter = each (_: pkgs: pkgs.nixfmt-tree);

      # Real NixOS in virtual machines: they want KVM
      checks = each (_: pkgs: import ./nix/checks { inherit pkgs self; });
    };
}
