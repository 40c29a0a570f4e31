"""ROS 2 messages to what a foreframe server takes, and its predictions back to messages.

Everything but `node` is plain Python and numpy: it takes any object with a message's fields and imports no ROS.
"""
