"""The fault lab: real kills, disks that refuse, damaged states, and what must hold after them."""
