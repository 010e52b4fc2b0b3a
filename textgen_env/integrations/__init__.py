"""One module a library. Nothing else imports these libraries, and each module says which extra installs its own."""
