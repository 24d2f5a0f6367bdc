# The controller as a systemd service, with a kubeconfig, on a machine that need not be part of the cluster.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  cfg = config.services.nixos-host-controller;
  name = "nixos-host-controller";
  # Its roots are where Nix looks for them, so that no garbage collection takes a system away
  roots = "/nix/var/nix/gcroots/${name}";
  argument = option: value: "--${option}=${if lib.isBool value then lib.boolToString value else toString value}";
in
{
  options.services.nixos-host-controller = {
    enable = lib.mkEnableOption "nixos-host-controller, which lands NixOS systems on machines as NixOSHost resources say";

    package = lib.mkPackageOption pkgs "nixos-host-controller" { };

    kubeconfig = lib.mkOption {
      type = lib.types.str;
      example = "/run/secrets/nixos-host-controller.kubeconfig";
      description = ''
        The kubeconfig of the cluster that has the resources: a file on the machine, not in the store. systemd hands it to the service, so that root alone
        needs to be able to read it. It may name no other files: put certificates and keys into it (`kubectl config view --flatten`).
      '';
    };

    settings = lib.mkOption {
      type = lib.types.attrsOf (
        lib.types.oneOf [
          lib.types.bool
          lib.types.int
          lib.types.str
        ]
      );
      default = { };
      example = {
        namespace = "infra";
        landings = 8;
      };
      description = "Arguments of the controller by their long names, as `nixos-host-controller --help` prints them.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = config.nix.enable;
        message = "nix.enable is false: nixos-host-controller evaluates and builds with the machine's Nix";
      }
      {
        assertion = !(lib.hasPrefix "/nix/store/" cfg.kubeconfig);
        message = "services.nixos-host-controller.kubeconfig is in the Nix store, where everybody can read it; name a file outside";
      }
    ];

    users.users.${name} = {
      isSystemUser = true;
      group = name;
    };
    users.groups.${name} = { };

    # It is an ordinary user of the Nix daemon, which sandboxes builds as this machine's nix.settings say
    nix.settings.extra-allowed-users = [ name ];

    systemd.tmpfiles.settings.${name}.${roots}.d = {
      mode = "0755";
      user = name;
      group = name;
    };

    systemd.services.${name} = {
      description = "Lands NixOS systems on machines";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "nix-daemon.socket"
        "systemd-tmpfiles-setup.service"
      ];
      path = [ config.nix.package ];
      environment = {
        KUBECONFIG = "%d/kubeconfig";
        HOME = "/tmp";
      };
      serviceConfig = {
        ExecStart = utils.escapeSystemdExecArgs ([ (lib.getExe cfg.package) ] ++ lib.mapAttrsToList argument cfg.settings);
        LoadCredential = "kubeconfig:${cfg.kubeconfig}";
        User = name;
        Group = name;
        StateDirectory = name;
        StateDirectoryMode = "0700";
        Restart = "always";
        RestartSec = 5;
        # A landing in flight gets 25 s; one that needs longer goes on without the controller
        KillMode = "mixed";
        TimeoutStopSec = 45;
        UMask = "0077";

        CapabilityBoundingSet = "";
        NoNewPrivileges = true;
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        PrivateDevices = true;
        PrivateTmp = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        ReadWritePaths = [ roots ];
        RemoveIPC = true;
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
          "AF_NETLINK"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallErrorNumber = "EPERM";
        # Evaluations are confined by Landlock, which is in no group of older systemd
        SystemCallFilter = [
          "@system-service"
          "landlock_create_ruleset"
          "landlock_add_rule"
          "landlock_restrict_self"
        ];
      };
    };
  };
}
