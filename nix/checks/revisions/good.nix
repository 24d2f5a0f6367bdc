{ environment.etc.revision.text = "good"; }
