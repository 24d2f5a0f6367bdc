# What a machine needs to be managed well. None of it is a must: any NixOS machine with sshd, Nix and a key for root does.
{ config, lib, ... }:
let
  cfg = config.services.nixos-host;
  root = cfg.user == "root";
  # Whatever the controller runs as root it hands to this shell, by `sudo -n -- /bin/sh -c SCRIPT sh ARGUMENTS`
  rule = {
    users = [ cfg.user ];
    commands = [
      {
        command = "/bin/sh";
        options = [ "NOPASSWD" ];
      }
    ];
  };
in
{
  options.services.nixos-host = {
    enable = lib.mkEnableOption "the login of nixos-host-controller";

    user = lib.mkOption {
      type = lib.types.str;
      default = "deploy";
      example = "root";
      description = ''
        Whom the controller logs in as: `spec.connection.user`. Another one than root is made here, and may use sudo without a password for
        /bin/sh: that is all of root's rights, as whoever lands systems has them in any case. What such a user adds is a name in the journal, and no
        SSH login of root.
      '';
    };

    authorizedKeys = lib.mkOption {
      type = lib.types.listOf lib.types.singleLineStr;
      default = [ ];
      example = [ "ssh-ed25519 AAAA… fleet" ];
      description = ''
        The public keys of the Secret that `spec.connection.sshKeyRef` names, without options. They open no terminal, agent or X11; TCP forwarding
        they do, for health checks of ports on the machine itself.
      '';
    };

    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = "Whether sshd's ports are opened in the firewall.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.authorizedKeys != [ ];
        message = "services.nixos-host.authorizedKeys is empty: nobody could log in as ${cfg.user}; name the controller's public key";
      }
      {
        assertion = config.nix.enable;
        message = "nix.enable is false: nixos-host-controller sends systems with the machine's nix-store";
      }
      {
        assertion = config.system.switch.enable;
        message = "system.switch.enable is false: such a system has no switch-to-configuration, and could never be landed";
      }
      {
        assertion = root || config.security.sudo.enable || config.security.sudo-rs.enable;
        message = "services.nixos-host.user is ${cfg.user}, who needs sudo: set security.sudo.enable, or user = \"root\"";
      }
    ];

    services.openssh = {
      enable = true;
      inherit (cfg) openFirewall;
      settings = {
        PermitRootLogin = lib.mkDefault (if root then "prohibit-password" else "no");
        PasswordAuthentication = lib.mkDefault false;
        KbdInteractiveAuthentication = lib.mkDefault false;
      };
    };

    users.users.${cfg.user} = lib.mkMerge [
      { openssh.authorizedKeys.keys = map (key: "restrict,port-forwarding ${key}") cfg.authorizedKeys; }
      (lib.mkIf (!root) {
        isSystemUser = true;
        group = cfg.user;
        useDefaultShell = true;
        description = "nixos-host-controller";
      })
    ];
    users.groups = lib.mkIf (!root) { ${cfg.user} = { }; };

    security.sudo.extraRules = lib.mkIf (!root && config.security.sudo.enable) [ rule ];
    security.sudo-rs.extraRules = lib.mkIf (!root && config.security.sudo-rs.enable) [ rule ];

    # Nix's trusted-users stay as they are: what is sent is received by root
  };
}
