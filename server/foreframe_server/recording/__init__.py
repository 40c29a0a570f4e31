"""What was asked and answered, as MCAP files that robots' tools open. Off every request's path.

    /camera/NAME        foxglove.CompressedImage   frames that were seen, PNG
    /state              foreframe.State            the states of those frames
    /requests           foreframe.Request          what was asked: which frames, all states, how to sample
    /prediction/NAME    foxglove.CompressedImage   predicted frames, at the time that they are of
    /predictions        foreframe.Prediction       how a prediction came to be

Every message is JSON and every schema is in the file.
"""
