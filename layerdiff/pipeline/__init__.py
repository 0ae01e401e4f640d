"""What is around the network: the inputs it is fed, and the detections that are made of its output."""
