"""Makes the bundled base model from nothing. No part of the package: one model was made with it."""
